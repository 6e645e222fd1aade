"""`culvert check`: what a node needs of this machine; what a cluster needs, or whether what is in it works."""

import sys

import click

from bpf.features import Check
from cli.cluster import Way, cluster_options, namespace_option, run
from cli.lab.options import fail, json_option, print_json


@click.command()
@click.option("--pre", is_flag=True, help="The cluster, before anything is installed.")
@click.option("--machine", is_flag=True, help="This machine, although there is a kubeconfig.")
@namespace_option
@cluster_options
@json_option
def check(pre: bool, machine: bool, namespace: str, way: Way, as_json: bool) -> None:
    """Say what is missing; status 1 when something necessary is. Nothing is changed.

    With a kubeconfig (--kubeconfig, KUBECONFIG, ~/.kube/config) the installation in its cluster is looked at, or with
    --pre whether one would work there. Without, this machine, as a node would need it: run as root, as the agent would.

    \b
    culvert check
    culvert check --pre
    culvert check --machine --json
    """
    if machine or not (pre or way.is_there):
        from bpf import features  # noqa: PLC0415 - tries the kernel's programs; a cluster is asked from anywhere

        _show(features.all_checks(), as_json)
    elif pre:
        from cli.checks import before  # noqa: PLC0415 - as above

        _show(run(way, lambda api: before.checks(api, namespace)), as_json)
    else:
        _show(_installation(way, namespace), as_json)


def _installation(way: Way, namespace: str) -> list[Check]:
    from cli.checks import after  # noqa: PLC0415 - as above
    from cli.reach.base import Unreachable  # noqa: PLC0415
    from cli.reach.cluster import ClusterReach  # noqa: PLC0415

    try:
        return after.checks(ClusterReach(way.kubeconfig(), namespace), namespace)
    except Unreachable as error:
        fail(str(error))


def _show(found: list[Check], as_json: bool) -> None:
    bad = [item for item in found if item.is_required and not item.is_met]
    if as_json:
        rows = [{"name": i.name, "passed": i.is_met, "required": i.is_required, "sentence": i.sentence} for i in found]
        print_json({"passed": not bad, "checks": rows})
    else:
        for item in found:
            word = "ok" if item.is_met else "MISSING" if item.is_required else "without"
            click.echo(f"{word:8} {item.name}: {item.sentence}")
    sys.exit(1 if bad else 0)
