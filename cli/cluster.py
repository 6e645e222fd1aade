"""What commands that act on a cluster share: how they reach it, and how its faults are told."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from cli.lab.options import fail
from mesh.kube.api import Api
from mesh.kube.errors import ApiFault
from mesh.kube.forward import kubeconfig_of_user
from mesh.kube.transport import Misconfigured, connect

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

FIELD_MANAGER = "culvert"


def kubeconfig_option(command: F) -> F:
    """--kubeconfig FILE; else KUBECONFIG, else ~/.kube/config, else the pod's own account."""
    return click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="How to reach the cluster (or KUBECONFIG, or ~/.kube/config).",
    )(command)


def namespace_option(command: F) -> F:
    """--namespace NAME of the installation."""
    return click.option(
        "-n",
        "--namespace",
        default="culvert-system",
        show_default=True,
        metavar="NAME",
        help="Namespace of the installation.",
    )(command)


def run(kubeconfig: Path | None, work: Callable[[Api], Coroutine[Any, Any, T]]) -> T:
    """Do something with a cluster; ends with status 1 and a sentence if the cluster is in the way."""

    async def connected() -> T:
        return await work(Api(connect(found), FIELD_MANAGER))

    found = kubeconfig_of_user(kubeconfig, os.environ)
    if found is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        fail("which cluster? There is no kubeconfig: say --kubeconfig FILE, or set KUBECONFIG")
    try:
        return asyncio.run(connected())
    except Misconfigured as error:
        fail(str(error))
    except ApiFault as fault:
        fail(f"the API server: {fault}")
    except KeyboardInterrupt:
        fail("interrupted; what was done so far stays, and the same command goes on from there")
