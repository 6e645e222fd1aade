"""`culvert lab up`, `down`, `restart`."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from cli.lab.machines import check_local, span_of
from cli.lab.options import complain, fail, json_option, lab_option, print_json
from lab import client, manifests, names, paths
from lab.choice import LabError, choose
from lab.client import StartOptions
from lab.manifests import Manifest

DEFAULT_LAB = "default"
DEFAULT_NODES = ("node-1", "node-2")


@click.command()
@click.argument("directory", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--lab", "lab_name", envvar="CULVERT_LAB", default=DEFAULT_LAB, show_default=True, metavar="NAME",
              help="What to call it (or CULVERT_LAB).")  # fmt: skip
@click.option("--nodes", metavar="N|A,B,...", help="Number or names of nodes; default: the Node objects, else those "
              "that pods name, at least two.")  # fmt: skip
@click.option("--no-mesh", is_flag=True, help="Only the network and the pods.")
@click.option("--istio-labels", is_flag=True, help="Honour istio.io labels too, with istio-system as root namespace.")
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long to wait for the pods.")
@click.option("--listen", metavar="ADDRESS[:PORT]", help="Let other machines join, at this address of this machine.")
@click.option("--join", metavar="ADDRESS[:PORT]", help="Run a node of the lab that listens there.")
@click.option("--local", metavar="A,B,...", help="With --listen or --join: the nodes that this machine runs.")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="The secret that the machines of a lab share; --listen makes one when none is given.")  # fmt: skip
@json_option
def up(directory: Path | None, lab_name: str, nodes: str | None, no_mesh: bool, istio_labels: bool, timeout: float,
       listen: str | None, join: str | None, local: str | None, token_file: Path | None,
       as_json: bool) -> None:  # fmt: skip
    """Start a lab from a directory (or file) of Kubernetes manifests.

    Pods run programs of this machine: `command` is needed, `image` is not used. Waits until all pods are ready and all
    nodes know of them, else says which are not and why, and ends with status 1; the lab then stays up to be looked at.
    Ctrl-C takes it down.

    \b
    culvert lab up manifests/
    culvert lab up manifests/ --lab two --nodes 3 --no-mesh

    On several machines: the first one is given the manifests and takes all orders, the others run one node each.

    \b
    culvert lab up manifests/ --listen 192.0.2.1 --local node-1; culvert lab token > token
    culvert lab up --join 192.0.2.1 --local node-2 --token-file token
    """
    span = span_of(listen, join, local, token_file)
    if join and (directory or nodes or no_mesh or istio_labels):
        raise click.UsageError("with --join, the first machine has the manifests and says what runs")
    if directory is None and not join:
        raise click.UsageError("a DIRECTORY of manifests is missing")
    objects, faults = _read([directory]) if directory else ([], [])
    own_nodes = _nodes(objects, nodes) if directory else []
    check_local(span, own_nodes) if listen else None
    objects = [*own_nodes, *(o for o in objects if o["kind"] != "Node")]
    settings: dict[str, Any] = {"istio_labels": True, "root_namespace": "istio-system"} if istio_labels else {}
    progress = (lambda _: None) if as_json else complain
    try:
        with _term_interrupts():
            client.start(lab_name, StartOptions(not no_mesh, json.dumps(settings), span))
    except LabError as error:
        fail(str(error))
    except KeyboardInterrupt:
        complain(f"interrupted: lab {lab_name} is not started")
        sys.exit(130)
    try:
        with _down_when_interrupted(lab_name):
            refused = _apply(lab_name, objects, timeout)
            for name in client.order(lab_name, "status")["mesh"].get("missing", ()):
                progress(f"{name} is not installed here and does not run")
            not_ready = client.wait_ready(lab_name, timeout, progress)
            refused += complain_all("refused", client.refused_by_controller(lab_name))
            status = client.order(lab_name, "status")
    except LabError as error:
        with suppress(LabError):
            client.take_down(lab_name)
        fail(f"{error}; the lab was taken down again")
    for line in not_ready:
        complain(f"not ready: {line}")
    if as_json:
        print_json({**status, "faults": [str(f) for f in faults], "refused": refused, "not_ready": not_ready})
    else:
        complain(f"lab {lab_name} is up: {len(status['nodes'])} nodes, {len(status['pods'])} pods")
    sys.exit(1 if faults or refused or not_ready else 0)


@click.command()
@lab_option
@click.option("--all", "every", is_flag=True, help="All labs of this machine.")
def down(lab_name: str | None, every: bool) -> None:
    """End a lab and remove all of it: processes, programs, namespaces, files.

    Works too when its supervisor was killed. Nothing happens with --all when there is no lab.

    \b
    culvert lab down
    culvert lab down --all
    """
    try:
        chosen = list(paths.labs()) if every else [choose(lab_name)]
        left = [line for name in chosen for line in client.take_down(name)]
    except LabError as error:
        fail(str(error))
    for line in left:
        complain(f"left behind: {line}")
    sys.exit(1 if left else 0)


@click.command()
@click.argument("target", metavar="NS/POD|node/NODE/COMPONENT|controller")
@click.option("--signal", "signal_name", default="TERM", show_default=True, metavar="NAME",
              help="For components: KILL to crash one.")  # fmt: skip
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="For pods: how long to wait.")
@lab_option
def restart(target: str, signal_name: str, timeout: float, lab_name: str | None) -> None:
    """Replace a pod by a fresh one, or end a component so that its supervisor starts it again.

    \b
    culvert lab restart shop/web
    culvert lab restart node/node-1/ztunnel --signal KILL
    """
    try:
        number = signal.Signals[f"SIG{signal_name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise click.UsageError(f"there is no signal {signal_name!r}") from None
    try:
        lab = choose(lab_name)
        client.order(lab, "restart", target=target, signal=int(number))
        is_pod = not target.startswith("node/") and target != "controller"
        path = target if "/" in target else f"default/{target}"
        not_ready = client.wait_ready(lab, timeout, lambda _: None, {path}) if is_pod else []
    except LabError as error:
        fail(str(error))
    if not_ready:
        fail(f"not ready: {not_ready[0]}")


def _apply(lab: str, objects: list[Manifest], timeout: float) -> list[str]:
    """A new lab's objects; returns the refusals. A machine that joins has none of its own."""
    return report(client.order(lab, "apply", timeout + 60, objects=objects)["outcomes"]) if objects else []


def report(outcomes: list[dict[str, Any]]) -> list[str]:
    """Complain about what was refused or has no effect; returns the refusals."""
    refused = [f"{o['object']}: {o['reason']}" for o in outcomes if o["outcome"] == "refused"]
    for line in refused:
        complain(f"refused: {line}")
    for o in outcomes:
        for field in o["unused"]:
            complain(f"note: {o['object']}: {field} has no effect in a lab")
    return refused


def complain_all(word: str, lines: list[str]) -> list[str]:
    """Complain about each line; returns them."""
    for line in lines:
        complain(f"{word}: {line}")
    return lines


def read_or_fail(sources: list[Path]) -> tuple[list[Manifest], list[manifests.Fault]]:
    """Read manifests, complaining about what cannot be read."""
    return _read(sources)


def _read(sources: list[Path]) -> tuple[list[Manifest], list[manifests.Fault]]:
    try:
        objects, faults = manifests.read(sources)
    except (OSError, UnicodeDecodeError) as error:
        fail(str(error))
    for fault in faults:
        complain(f"skipped: {fault}")
    return objects, faults


def _nodes(objects: list[Manifest], asked: str | None) -> list[Manifest]:
    """The Node objects of a new lab."""
    given = [o for o in objects if o["kind"] == "Node"]
    if asked is None and given:
        return given
    if asked is None:
        named = {str((o.get("spec") or {}).get("nodeName") or "") for o in objects if o["kind"] == "Pod"} - {""}
        wanted = sorted(named) + [n for n in DEFAULT_NODES if n not in named][: max(0, 2 - len(named))]
    elif asked.isdigit():
        wanted = [f"node-{i + 1}" for i in range(int(asked))]
    else:
        wanted = [name.strip() for name in asked.split(",") if name.strip()]
    faults = [fault for fault in map(names.node_fault, wanted) if fault]
    if faults or not wanted:
        raise click.UsageError("; ".join(faults) or "a lab has at least one node")
    known = {o["metadata"]["name"]: o for o in given}
    return [known.get(name, manifests.normalise({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
            for name in wanted]  # fmt: skip


@contextmanager
def _down_when_interrupted(lab: str) -> Iterator[None]:
    """A half-made lab does not outlive its maker's Ctrl-C or SIGTERM."""
    try:
        with _term_interrupts():
            yield
    except KeyboardInterrupt:
        complain(f"interrupted: taking lab {lab} down")
        client.take_down(lab)
        sys.exit(130)


@contextmanager
def _term_interrupts() -> Iterator[None]:
    """SIGTERM is as Ctrl-C meanwhile."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
