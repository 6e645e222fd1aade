"""`culvert node`: acts on the eBPF programs of one node, beside its agent."""

import sys
from pathlib import Path

import click

from cli.lab.options import fail, print_json
from daemonset import commands
from daemonset.programs import LoadFailed
from lab import paths

KEY = click.option(
    "--node", "key", metavar="KEY", help="The node's key: its name; in a lab <lab>-<node>. Default: the only one."
)


@click.group()
def node() -> None:
    """Act on a node's eBPF programs.

    \b
    culvert node status --node demo-node-1
    culvert node upgrade-bpf --node demo-node-1
    """


@node.command()
@KEY
def status(key: str | None) -> None:
    """Print what the node's agent said last, as JSON. Status 1 when it does not run.

    \b
    culvert node status
    culvert node status --node demo-node-1
    """
    try:
        found = commands.status(_runtime(key))
    except FileNotFoundError:
        fail(f"no agent has run for node {key or 'here'}: there is no agent-status.json")
    print_json(found)
    sys.exit(0 if found["running"] else 1)


@node.command("upgrade-bpf")
@KEY
def upgrade_bpf(key: str | None) -> None:
    """Swap the node's programs for this version's, in place: open connections go on.

    \b
    culvert node upgrade-bpf --node demo-node-1
    """
    try:
        click.echo(commands.upgrade_bpf(_runtime(key).name))
    except LoadFailed as error:
        fail(str(error))


@node.command()
@KEY
@click.option("--force", is_flag=True, help="Although the agent runs.")
def unload(key: str | None, force: bool) -> None:
    """Detach and remove everything that is pinned for the node. Its pods are outside the mesh afterwards.

    \b
    culvert node unload --node demo-node-1
    """
    runtime = _runtime(key)
    try:
        click.echo(commands.unload(runtime.name, runtime, force=force))
    except (commands.CommandRefused, LoadFailed) as error:
        fail(str(error))


def _runtime(key: str | None) -> Path:
    """The runtime directory of the node that is meant."""
    if key is not None:
        return paths.node_runtime(key)
    found = [path.parent for path in paths.RUN.glob("*/agent-status.json")]
    if len(found) == 1:
        return found[0]
    keys = ", ".join(sorted(path.name for path in found)) or "none"
    fail(f"which node? These have an agent here: {keys}. Say --node KEY")
