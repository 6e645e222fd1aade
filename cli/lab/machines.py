"""What `culvert lab up` is told of other machines, and `culvert lab token`."""

from pathlib import Path

import click

from cli.lab.options import fail, lab_option
from lab import names
from lab.choice import LabError, choose
from lab.manifests import Manifest
from lab.paths import LabPaths
from lab.span.options import Span, endpoint


def span_of(listen: str | None, join: str | None, local: str | None, token_file: Path | None) -> Span:
    """The options as one value; raises UsageError when they do not go together."""
    nodes = tuple(name.strip() for name in (local or "").split(",") if name.strip())
    faults = [fault for fault in map(names.node_fault, nodes) if fault]
    if listen and join:
        faults.append("--listen is for the first machine, --join for the others")
    if (listen or join) and not nodes:
        faults.append("--local says which nodes this machine runs")
    if join and len(nodes) > 1:
        faults.append("a machine that joins runs one node")
    if join and token_file is None:
        faults.append("--token-file: `culvert lab token` on the first machine prints what must be in it")
    if not (listen or join) and (nodes or token_file):
        faults.append("--local and --token-file are for a lab on several machines: --listen or --join")
    for option, text in (("--listen", listen), ("--join", join)):
        try:
            endpoint(text) if text else None
        except ValueError as error:
            faults.append(f"{option} {text}: {error}")
    if faults:
        raise click.UsageError("; ".join(faults))
    return Span(listen or "", join or "", nodes, str(token_file.resolve()) if token_file else "")


def check_local(span: Span, nodes: list[Manifest]) -> None:
    """Whether the nodes of this machine are nodes of the lab; raises UsageError."""
    known = [node["metadata"]["name"] for node in nodes]
    strangers = [name for name in span.local if name not in known]
    if strangers:
        raise click.UsageError(f"--local {','.join(strangers)}: the nodes of this lab are {', '.join(known)}")


@click.command()
@lab_option
def token(lab_name: str | None) -> None:
    """Print the secret with which other machines join a lab. Who has it has all of the lab.

    \b
    culvert lab token > token
    """
    try:
        lab = choose(lab_name)
        click.echo(LabPaths(lab).token.read_text().strip())
    except FileNotFoundError:
        fail(f"lab {lab!r} is on this machine alone: `culvert lab up --listen ADDRESS` lets others join")
    except (LabError, OSError) as error:
        fail(str(error))
