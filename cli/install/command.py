"""`culvert install`, `upgrade`, `uninstall`."""

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from cli import cluster
from cli.checks import before
from cli.install import record, removal, steps
from cli.install.chart import Chart, Release
from cli.install.manifests import PLATFORMS, text
from cli.install.record import Record, Ref, ref_of
from cli.install.steps import InstallRefused, Wanted
from cli.install.template import TemplateFault
from cli.install.values import BadValues, Values, assignments_between, chosen, complete
from cli.install.waiting import TimedOut
from cli.lab.options import complain, fail, json_option, print_json
from mesh.kube.api import Api

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user says about the installation."""

    namespace: str
    platform: str | None
    image: str | None
    files: tuple[Path, ...]
    assignments: tuple[str, ...]

    def settings(self, chart: Chart, earlier: Values | None = None) -> Values:
        """Settings beside the defaults; raises BadValues."""
        own = [f"{name}={value}" for name, value in (("platform", self.platform), ("image", self.image)) if value]
        return chosen(chart.defaults, self.files, [*own, *self.assignments], earlier)


def _settings_options(command: F) -> F:
    """What `install` and `upgrade` are told alike; the command gets it as `choice`."""

    @functools.wraps(command)
    def run(
        *,
        namespace: str,
        platform: str | None,
        image: str | None,
        files: tuple[Path, ...],
        assignments: tuple[str, ...],
        **options: Any,
    ) -> Any:
        return command(choice=Choice(namespace, platform, image, files, assignments), **options)

    made: Any = run
    for option in (
        click.option(
            "--set", "assignments", multiple=True, metavar="A.B=C", help="A setting of the chart; repeatable."
        ),
        click.option(
            "-f",
            "--values",
            "files",
            multiple=True,
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            metavar="FILE",
            help="Settings from a file; repeatable.",
        ),
        click.option("--image", metavar="IMAGE", help="The image of controller, agent and ztunnel."),
        click.option("--platform", type=click.Choice(PLATFORMS), help="What the nodes are; default: generic."),
        click.option("--timeout", default=180.0, show_default=True, metavar="SECONDS", help="How long to wait for it."),
        click.option("--dry-run", is_flag=True, help="Print the objects and change nothing."),
    ):
        made = option(made)
    return cast(F, cluster.namespace_option(cluster.cluster_options(json_option(made))))


@click.command()
@_settings_options
def install(choice: Choice, way: cluster.Way, timeout: float, dry_run: bool, as_json: bool) -> None:
    """Install Culvert into a cluster and wait until the controller and every node are ready.

    May be repeated: an installation that was interrupted is completed, and settings of before stay unless they are
    named. No pod is in the mesh by that; `culvert enrol` or the label culvert.io/mesh=enabled on a namespace does it.

    \b
    culvert install --image registry.example/culvert:0.1.0
    culvert install --platform gke --set logs.level=debug --set controller.replicas=3
    culvert install --dry-run | kubectl diff -f -
    """
    chart = Chart()
    if dry_run:
        _print(chart, _wanted(chart, choice, None), as_json)
        return

    async def work(api: Api) -> dict[str, Any]:
        earlier = await record.read(api, choice.namespace)
        if earlier is not None and earlier.version != chart.version:
            raise InstallRefused(f"version {earlier.version} is installed: `culvert upgrade` brings {chart.version}")
        return await _bring(api, _wanted(chart, choice, earlier.settings if earlier else None), earlier, timeout)

    _tell(_run(way, work), as_json)


@click.command()
@click.option("--reset", is_flag=True, help="Forget the settings of the installation that is there.")
@_settings_options
def upgrade(reset: bool, choice: Choice, way: cluster.Way, timeout: float, dry_run: bool, as_json: bool) -> None:
    """Bring an installation to this version, or change its settings. Settings that are not named stay as they are.

    Nodes are replaced one after the other, each new one taking over from the old one.

    \b
    culvert upgrade --image registry.example/culvert:0.2.0
    culvert upgrade --set logs.level=debug
    """
    chart = Chart()

    async def work(api: Api) -> dict[str, Any]:
        earlier = await record.read(api, choice.namespace)
        if earlier is None:
            await steps.check_owner(api, _wanted(chart, choice, None))
            raise InstallRefused(f"namespace {choice.namespace} has no installation: `culvert install` makes one")
        wanted = _wanted(chart, choice, None if reset else earlier.settings)
        if dry_run:
            _print(chart, wanted, as_json)
            return {}
        try:
            return await _bring(api, wanted, earlier, timeout)
        except TimedOut as late:
            raise TimedOut(f"{late}\n{_way_back(chart, earlier, wanted)}") from late

    if found := _run(way, work):
        _tell(found, as_json)


@click.command()
@click.option(
    "--purge", is_flag=True, help="Policies and the namespace too, whatever is in it, and although nodes are not clean."
)
@click.option(
    "--for-helm",
    "release",
    default="",
    metavar="RELEASE",
    help="Only what `helm uninstall RELEASE` cannot do: pods are let go, nodes cleaned. The chart's hook calls this.",
)
@click.option("--timeout", default=120.0, show_default=True, metavar="SECONDS", help="How long each step may take.")
@cluster.namespace_option
@cluster.cluster_options
@json_option
def uninstall(purge: bool, release: str, timeout: float, namespace: str, way: cluster.Way, as_json: bool) -> None:
    """Take Culvert out of a cluster: pods are let go, nodes cleaned, objects removed.

    Ends with 1 when something stays, and says what: policies of users (unless --purge), nodes that do not answer. Those
    are cleaned when they are back; repeated, the command then removes the rest. With --for-helm all objects stay, and
    only nodes that could not be cleaned make it end with 1.

    \b
    culvert uninstall
    culvert uninstall --purge
    """
    if purge and release:
        raise click.UsageError("--purge gives nodes and objects up, --for-helm leaves both to Helm: say one of them")

    async def work(api: Api) -> tuple[removal.Removed, bool]:
        task, found = removal.Removal(api, namespace, complain, timeout, purge, release), removal.Removed()
        if release:
            return found, await task.leave_nodes(found)
        found = await task.run(await _objects(api, namespace))
        return found, not found.left

    found, is_done = _run(way, work)
    if as_json:
        print_json({"removed": found.done, "left": found.left})
    else:
        for line in found.done:
            click.echo(f"removed {line}")
        for line in found.left:
            click.echo(f"left    {line}")
    if not is_done:
        raise SystemExit(1)


async def _objects(api: Api, namespace: str) -> Sequence[Ref]:
    """What an installation consists of, by its record; without one what any consists of."""
    earlier = await record.read(api, namespace)
    if earlier is not None:
        return earlier.objects
    chart = Chart()
    own = {"namespace": {"create": True}, "managedBy": record.LABELS[record.MANAGED_BY]}
    return [ref_of(one) for one in chart.objects(complete(chart.defaults, own), Release(namespace))]


def _wanted(chart: Chart, choice: Choice, earlier: Values | None) -> Wanted:
    """What shall be in the cluster; ends with 2 if the settings cannot be used."""
    try:
        settings = choice.settings(chart, earlier)
        own: Values = {"namespace": {"create": True}, "managedBy": record.LABELS[record.MANAGED_BY]}
        objects = chart.objects(complete(complete(chart.defaults, own), settings), Release(choice.namespace))
    except (BadValues, TemplateFault) as error:
        for line in str(error).splitlines():
            complain(f"culvert: {line}")
        raise SystemExit(2) from error
    kept = Record(chart.version, settings, tuple(ref_of(one) for one in objects))
    return Wanted(choice.namespace, kept, chart.definitions(), objects)


async def _bring(api: Api, wanted: Wanted, earlier: Record | None, timeout_s: float) -> dict[str, Any]:
    platform = str(wanted.record.settings.get("platform", "generic"))
    if warning := await before.platform_warning(api, platform):
        complain(f"culvert: {warning}")
    done = await steps.bring(api, wanted, earlier, complain)
    await steps.wait(api, wanted.namespace, timeout_s, complain)
    return {
        "version": wanted.record.version,
        "namespace": wanted.namespace,
        "applied": done.applied,
        "removed": done.removed,
        "left": done.left,
    }


def _way_back(chart: Chart, earlier: Record, wanted: Wanted) -> str:
    """How to undo an upgrade that does not come to an end."""
    now, then = complete(chart.defaults, wanted.record.settings), complete(chart.defaults, earlier.settings)
    words = "".join(f" --set {shlex.quote(text)}" for text in assignments_between(now, then))
    whose = "" if earlier.version == chart.version else f"the `culvert` of version {earlier.version}: "
    return f"pods of before serve until new ones are ready; back to them: {whose}culvert upgrade{words}"


def _print(chart: Chart, wanted: Wanted, as_json: bool) -> None:
    documents = [*wanted.definitions, *wanted.objects]
    if as_json:
        print_json({"version": chart.version, "objects": documents})
    else:
        click.echo(text(documents), nl=False)


def _tell(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    click.echo(f"Culvert {found['version']} is installed and ready in namespace {found['namespace']}")
    click.echo("next: culvert enrol NAMESPACE; culvert status")


def _run(way: cluster.Way, work: Callable[[Api], Any]) -> Any:
    try:
        return cluster.run(way, work)
    except (InstallRefused, removal.Refused, record.Unreadable) as error:
        fail(str(error))
    except TimedOut as error:
        fail(f"{error}\nwhat is there stays: the same command goes on from there, `culvert uninstall` takes it out")
