"""`culvert policy test`: what policies would have done to the connections that nodes have seen lately."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli.config import dumps
from cli.lab.options import WRONG_USAGE, complain, fail, json_option, print_json
from cli.reach.base import ZTUNNEL_ADMIN, Reach, Unreachable, about, ask, ask_all, ask_controller
from cli.reach.options import reach_options
from cli.table import table
from cli.trial.judge import BadPolicies, Judged, LabelsUnknown, Node, Tried, read, translated
from controller.index.objects import AuthorizationPolicy
from controller.translate.facts import Mesh

STDIN = Path("-")
MAX_FILE_BYTES = 16 << 20  # far more than an API server would take


@click.group()
def policy() -> None:
    """Try policies before they are applied.

    \b
    culvert policy test deny.yaml
    """


@policy.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--all", "show_all", is_flag=True, help="Also connections to which nothing would happen.")
@reach_options
@json_option
def test(file: Path, show_all: bool, where: Reach, as_json: bool) -> None:
    """Say what the AuthorizationPolicies of FILE would have done to connections that nodes remember.

    FILE is YAML, or JSON when it is called so; - is standard input. Ends with 2 when it is malformed or holds anything
    else, and nothing of it is tried.

    Each node remembers the last 4096 pairs of peer and port, since its ztunnel has started. A policy of the file takes
    the place of the one of its name. Nothing is applied. Ends with 1 when one that was let in would be refused.

    \b
    culvert policy test deny.yaml
    culvert policy test deny.yaml --lab demo --all
    """
    written = _read(file)
    found = dumps(where, None)
    mesh = _mesh(where, next(iter(found.values())))
    tried = [translated(one, mesh) for one in written]
    try:
        judged = _judged(where, found, tried, mesh)
    except (LabelsUnknown, Unreachable) as error:
        fail(str(error))
    remarks = [f"{one.written.namespace}/{one.written.name}: {one.remark}" for one in tried if one.remark]
    if as_json:
        rows = [{**one.flow, "would_be_allowed": one.allowed, "because": one.because} for one in judged]
        print_json({"remarks": remarks, "flows": rows})
    else:
        for line in remarks:
            complain(line)
        for line in lines(judged, show_all):
            click.echo(line)
    sys.exit(1 if any(one.is_changed and not one.allowed for one in judged) else 0)


def _read(file: Path) -> list[AuthorizationPolicy]:
    """What the file says; ends with 2 when it cannot be tried."""
    name = "standard input" if file == STDIN else str(file)
    try:
        with click.open_file(str(file), "rb") as opened:
            raw = opened.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise BadPolicies(f"{name}: has more than {MAX_FILE_BYTES} bytes")
        return read(raw.decode("utf-8"), name)
    except OSError as error:
        fail(f"{name}: {error.strerror or error}", WRONG_USAGE)
    except UnicodeDecodeError as error:
        fail(f"{name}: is not UTF-8: byte {error.start} is {raw[error.start]:#04x}", WRONG_USAGE)
    except BadPolicies as error:
        fail(str(error), WRONG_USAGE)


def lines(judged: Sequence[Judged], show_all: bool) -> list[str]:
    """The result for people."""
    shown = [one for one in judged if show_all or one.is_changed]
    changed = sum(one.is_changed for one in judged)
    text = [f"{changed} of {len(judged)} remembered connections would be treated otherwise"]
    if not shown:
        return text
    header = ("FROM", "TO", "CONNECTIONS", "WAS", "WOULD BE", "BECAUSE")
    return [*text, "", *table(header, [_row(one) for one in shown])]


def _row(one: Judged) -> tuple[Any, ...]:
    flow = one.flow
    source = flow["identity"] or flow["source"]
    target = f"{flow['namespace']}/{flow['name']}:{flow['port']}"
    words = ("refused", "let in")
    return source, target, flow["connections"], words[flow["allowed"]], words[one.allowed], one.because


def _judged(where: Reach, found: dict[str, dict[str, Any]], tried: Sequence[Tried], mesh: Mesh) -> list[Judged]:
    flows, failed = ask_all(lambda node: ask(where, node, ZTUNNEL_ADMIN, "/flows"), found)
    for name, why in failed.items():
        complain(f"culvert: {about(name, why)}")
    if not failed and not any(flows.values()):
        complain("no node remembers a connection to a pod of the mesh yet: there is nothing to judge")
    needs_labels = any(one.written.selector for one in tried)
    labels = where.pod_labels() if needs_labels else {}
    result, gone = [], 0
    for name, rows in flows.items():
        node = Node(found[name])
        for flow in rows:
            own = labels.get(f"{flow['namespace']}/{flow['name']}")
            if needs_labels and own is None:
                gone += 1  # and with the pod, whom the policy would select
                continue
            result.append(node.judged(flow, tried, own, mesh.root_namespace))
    if gone:
        complain(f"{gone} remembered connections are left out: their pods are gone")
    return result


def _mesh(where: Reach, dump: dict[str, Any]) -> Mesh:
    """Settings that show in policies: the controller's, or if none answers its defaults and the node's trust domain."""
    try:
        said = ask_controller(where, where.controllers()[0], "/debug/config")["mesh"]
        return Mesh(trust_domain=said["trust_domain"], root_namespace=said["root_namespace"])
    except (Unreachable, IndexError, KeyError):
        return Mesh(trust_domain=dump["config"]["place"]["trust_domain"])
