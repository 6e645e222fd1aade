"""`culvert lab apply`, `delete`, `get`, `label`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.lab.life import complain_all, read_or_fail, report
from cli.lab.options import complain, fail, json_option, lab_option, print_json
from lab import client, manifests
from lab.choice import LabError, choose

# What is deleted is gone here whatever happens; nodes that do not hear of it in this time are named.
DELETED_EVERYWHERE_S = 10.0


@click.command()
@click.option("-f", "--file", "sources", required=True, multiple=True, metavar="FILE|DIR|-",
              help="Manifests; - is standard input. May be given more than once.")  # fmt: skip
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS",
              help="How long to wait for applied pods, and for every node to know; 0: do not wait.")  # fmt: skip
@lab_option
@json_option
def apply(sources: tuple[str, ...], timeout: float, lab_name: str | None, as_json: bool) -> None:
    """Create or change objects from manifests; wait for the pods among them, and until every node knows.

    A pod whose spec differs is replaced; changed labels and annotations take effect in place.

    \b
    culvert lab apply -f policy.yaml
    generate | culvert lab apply -f -
    """
    faults: list[manifests.Fault] = []
    objects: list[manifests.Manifest] = []
    for source in sources:
        if source == "-":
            found, wrong = manifests.parse(sys.stdin.read(), "standard input")
            for fault in wrong:
                complain(f"skipped: {fault}")
        else:
            found, wrong = read_or_fail([Path(source)])
        objects += found
        faults += wrong
    try:
        lab = choose(lab_name)
        outcomes = client.order(lab, "apply", 60 + timeout, objects=objects)["outcomes"]
        refused = report(outcomes)
        pods = {o["object"].removeprefix("Pod ") for o in outcomes if o["object"].startswith("Pod ")}
        not_ready = client.wait_ready(lab, timeout, lambda _: None, pods) if timeout else []
        if timeout:
            refused += complain_all("refused", client.refused_by_controller(lab, {o["object"] for o in outcomes}))
    except LabError as error:
        fail(str(error))
    if as_json:
        print_json({"outcomes": outcomes, "faults": [str(fault) for fault in faults], "not_ready": not_ready})
    else:
        for outcome in outcomes:
            if outcome["outcome"] != "refused":
                click.echo(f"{outcome['object']} {outcome['outcome']}")
    for line in not_ready:
        complain(f"not ready: {line}")
    sys.exit(1 if faults or refused or not_ready else 0)


@click.command()
@click.argument("kind")
@click.argument("path", metavar="[NS/]NAME")
@click.option("--grace", type=float, metavar="SECONDS", help="For pods: between SIGTERM and SIGKILL.")
@lab_option
def delete(kind: str, path: str, grace: float | None, lab_name: str | None) -> None:
    """Delete an object and wait until it is gone; a namespace goes with all it holds.

    \b
    culvert lab delete pod shop/web
    culvert lab delete authorizationpolicy shop/only-frontend
    """
    try:
        lab = choose(lab_name)
        done = client.order(lab, "delete", 120, kind=kind, path=path, grace_s=grace)
        click.echo(f"{done['object']} {'deleted' if done['gone'] else 'will be deleted when its machine is back'}")
        for line in client.wait_announced(lab, DELETED_EVERYWHERE_S):
            complain(f"not everywhere yet: {line}")
    except LabError as error:
        fail(str(error))


@click.command()
@click.argument("kind", required=False)
@click.argument("path", metavar="[NS/]NAME", required=False)
@lab_option
def get(kind: str | None, path: str | None, lab_name: str | None) -> None:
    """Print an object with its status as JSON; without arguments, the names of all objects.

    \b
    culvert lab get
    culvert lab get pod shop/client
    """
    if kind is not None and path is None:
        raise click.UsageError("say which one: culvert lab get KIND NS/NAME")
    try:
        lab = choose(lab_name)
        if kind is None:
            click.echo("\n".join(client.order(lab, "get")["objects"]))
        else:
            print_json(client.order(lab, "get", kind=kind, path=path)["object"])
    except LabError as error:
        fail(str(error))


@click.command()
@click.argument("kind")
@click.argument("path", metavar="[NS/]NAME")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS",
              help="How long to wait until the pods and every node have followed; 0: do not wait.")  # fmt: skip
@lab_option
def label(kind: str, path: str, changes: tuple[str, ...], timeout: float, lab_name: str | None) -> None:
    """Set labels with KEY=VALUE, remove them with KEY-; wait until the mesh has followed.

    \b
    culvert lab label namespace shop culvert.io/mesh=enabled
    culvert lab label pod shop/web culvert.io/mesh-
    """
    wanted: dict[str, str | None] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals and not change.endswith("-"):
            raise click.UsageError(f"{change!r} is neither KEY=VALUE nor KEY-")
        wanted[key if equals else change[:-1]] = value if equals else None
    try:
        lab = choose(lab_name)
        outcome = client.order(lab, "label", kind=kind, path=path, changes=wanted)
        if outcome["outcome"] == "refused":
            fail(f"{outcome['object']}: {outcome['reason']}")
        missing = client.wait_labelled(lab, timeout, _labelled(outcome["object"])) if timeout else []
    except LabError as error:
        fail(str(error))
    click.echo(f"{outcome['object']} {outcome['outcome']}")
    for line in missing:
        complain(f"not done yet: {line}")
    sys.exit(1 if missing else 0)


def _labelled(object_name: str) -> Callable[[dict[str, Any]], bool]:
    """Which pods a label on an object speaks for, by their entries in `lab status`."""
    kind, _, path = object_name.partition(" ")

    def is_meant(pod: dict[str, Any]) -> bool:
        if kind == "Namespace":
            return bool(pod["namespace"] == path)
        return kind == "Pod" and f"{pod['namespace']}/{pod['name']}" == path

    return is_meant
