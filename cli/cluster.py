"""What commands that act on a cluster share: how they reach it, and how its faults are told."""

import asyncio
import functools
import os
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from cli.lab.options import fail
from mesh.kube.api import Api
from mesh.kube.errors import ApiFault, Forbidden, Misconfigured, Unauthorized
from mesh.kube.kubeconfig import Kubeconfig, configuration, of_user
from mesh.kube.transport import over

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

FIELD_MANAGER = "culvert"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Way:
    """How a user says which cluster is meant."""

    file: Path | None = None
    context: str = ""

    def kubeconfig(self) -> Kubeconfig | None:
        """The files that are meant; None: there are none. Ends with 1 when what is named is not there."""
        try:
            found = of_user(self.file, self.context, os.environ)
        except Misconfigured as error:
            fail(str(error))
        if found is None and self.context:
            fail(f"--context {self.context}: there is no kubeconfig: say --kubeconfig FILE, or set KUBECONFIG")
        return found

    @property
    def is_there(self) -> bool:
        """Whether there is any way to a cluster: a kubeconfig, or the account of the pod that we run in."""
        return self.kubeconfig() is not None or "KUBERNETES_SERVICE_HOST" in os.environ


def cluster_options(command: F) -> F:
    """--kubeconfig FILE and --context NAME; the command gets what they mean as `way`."""

    @functools.wraps(command)
    def run(*args: Any, kubeconfig: Path | None, context: str, **options: Any) -> Any:
        return command(*args, way=Way(kubeconfig, context), **options)

    file = click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="How to reach the cluster (or KUBECONFIG, or ~/.kube/config).",
    )
    context = click.option(
        "--context", default="", metavar="NAME", help="A context of the kubeconfig; default: its current one."
    )
    return cast(F, context(file(run)))


def namespace_option(command: F) -> F:
    """--namespace NAME of the installation."""
    return click.option(
        "-n",
        "--namespace",
        default="culvert-system",
        show_default=True,
        metavar="NAME",
        callback=_label,
        help="Namespace of the installation.",
    )(command)


def _label(context: click.Context, option: click.Parameter, value: str) -> str:
    """A name that a namespace can have: what cannot be one is refused before anything is done."""
    if not _LABEL.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no name of a namespace: lower case letters, digits and `-`, at most 63")
    return value


def run(way: Way, work: Callable[[Api], Coroutine[Any, Any, T]]) -> T:
    """Do something with a cluster; ends with status 1 and a sentence if the cluster is in the way."""

    async def connected() -> T:
        return await work(Api(over(configuration(found)), FIELD_MANAGER))

    found = way.kubeconfig()
    if not way.is_there:
        fail("which cluster? There is no kubeconfig: say --kubeconfig FILE, or set KUBECONFIG")
    try:
        return asyncio.run(connected())
    except Misconfigured as error:
        fail(str(error))
    except ApiFault as fault:
        fail(told(fault, found))
    except KeyboardInterrupt:
        fail("interrupted; what was done so far stays, and the same command goes on from there")


def told(fault: ApiFault, where: Kubeconfig | None, subject: str = "the API server") -> str:
    """A fault, and in a second line whose it is and what a user can do about it."""
    text = f"{subject}: {fault}"
    asked = where or "the pod's service account"
    if isinstance(fault, Unauthorized):
        return f"{text}\n  {asked} gives no credentials that it accepts: log in anew, or say --context or --kubeconfig"
    if isinstance(fault, Forbidden):
        return f"{text}\n  {asked} may not do this: ask for that right, or say another --context or --kubeconfig"
    if fault.status == 0:
        return f"{text}\n  asked by {asked}: is that cluster meant, and up? --context and --kubeconfig choose another"
    return text
