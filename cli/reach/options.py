"""Which mesh a command means: --lab, --local, or a cluster."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from cli.cluster import Way, cluster_options, namespace_option
from cli.lab.options import fail, lab_option
from cli.reach.base import Reach, Unreachable
from lab import paths

F = TypeVar("F", bound=Callable[..., Any])


def reach_options(command: F) -> F:
    """--lab, --local, --kubeconfig, --context and --namespace; the command gets what they mean as `where`."""

    @functools.wraps(command)
    def run(*args: Any, lab_name: str | None, local: str | None, way: Way, namespace: str, **options: Any) -> Any:
        lab_name = lab_meant(lab_name, {"--local": local is not None, **named(way)})
        return command(*args, where=reach(lab_name, local, way, namespace), **options)

    option = click.option("--local", metavar="KEY", help="The node that runs on this machine without a cluster.")
    return cast(F, option(lab_option(namespace_option(cluster_options(run)))))


def named(way: Way) -> dict[str, bool]:
    """The options that name a cluster, and whether they are given."""
    return {"--kubeconfig": way.file is not None, "--context": bool(way.context)}


def lab_meant(lab_name: str | None, others: Mapping[str, bool]) -> str | None:
    """The lab, unless it is only CULVERT_LAB's and another mesh is named. Ends with 2 when two meshes are named."""
    source = click.get_current_context().get_parameter_source("lab_name")
    is_named = lab_name is not None and source is not ParameterSource.ENVIRONMENT
    given = [option for option, is_given in {"--lab": is_named, **others}.items() if is_given]
    if len(given) > 1 and set(given) != {"--kubeconfig", "--context"}:
        raise click.UsageError(f"these name different meshes, say one of them: {', '.join(given)}")
    return lab_name if is_named or not given else None


def reach(lab_name: str | None, local: str | None, way: Way, namespace: str) -> Reach:
    """What is named; else the cluster of the user's kubeconfig, this machine's lab or node. Ends with 1 if unclear."""
    from cli.reach.cluster import ClusterReach  # noqa: PLC0415 - each brings a world along, one is needed
    from cli.reach.local import LabReach, NodeReach  # noqa: PLC0415

    try:
        if lab_name is not None:
            return LabReach(lab_name)
        if local is not None:
            return NodeReach(local)
        if way.is_there:
            return ClusterReach(way.kubeconfig(), namespace)
        if list(paths.labs()):
            return LabReach(None)
        if list(paths.RUN.glob("*/agent-status.json")):
            return NodeReach(None)
    except Unreachable as error:
        fail(str(error))
    fail(
        "which mesh? There is no kubeconfig (--kubeconfig), no lab (--lab) and no node on this machine (--local)\n"
        "  `culvert install` puts one into a cluster, `culvert lab up DIR` starts one on this machine"
    )
