"""The command line of a test cluster: build, up, down, kubectl."""

import subprocess
import sys
from pathlib import Path

import click

if __package__ in (None, ""):  # run as `python tests/cluster/kube`
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.cluster.kube import binaries
from tests.cluster.kube.cluster import Cluster
from tests.cluster.kube.place import Place


def say(text: str) -> None:
    """Progress goes to standard error."""
    click.echo(text, err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--name", default="kube", show_default=True, help="Name of the cluster, part of all that it makes.")
@click.pass_context
def main(context: click.Context, name: str) -> None:
    """A real two-node Kubernetes on this machine, for tests."""
    context.obj = Cluster(Place(name), say)


@main.command()
@click.argument("modules", nargs=-1, type=click.Choice([*binaries.modules(), *binaries.EXTRA_MODULES]))
def build(modules: tuple[str, ...]) -> None:
    """Build the pinned programs of a cluster, or MODULES alone, into the user's cache, once."""
    for module in modules or binaries.modules():
        binaries.build(module, say)
    click.echo("\n".join(str(binaries.folder(module)) for module in modules) or binaries.cache())


@main.command()
def lacks() -> None:
    """Say in one line what keeps this machine from having a cluster; `make kube image` installs all else."""
    click.echo("; ".join(binaries.lacks()), nl=False)


@main.command()
@click.argument("images", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def up(cluster: Cluster, images: tuple[Path, ...]) -> None:
    """Start the cluster; IMAGES are files for every node's containerd."""
    cluster.up(images)
    click.echo(f"KUBECONFIG={cluster.place.kubeconfig}")


@main.command()
@click.pass_obj
def down(cluster: Cluster) -> None:
    """End the cluster and remove everything of it."""
    cluster.down()


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def kubectl(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    """Run kubectl as administrator, for example: kubectl get pods -A."""
    sys.exit(cluster.run_kubectl(arguments).returncode)


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except (binaries.Missing, FileExistsError, TimeoutError) as error:
        say(str(error))
        sys.exit(1)
    except subprocess.CalledProcessError as error:
        say(f"{error}\n{error.stderr or ''}")
        sys.exit(1)
