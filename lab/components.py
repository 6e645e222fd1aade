"""The mesh components of a lab: which there are, and the command line of each. Nothing else knows them.

Standalone components, started exactly as a node's init system would start them: in the namespace of their node (the
controller in the fabric's), in the machine's mount and process namespaces, as root.
"""

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import plan
from lab.dns import CLUSTER_DOMAIN
from lab.nodes import Node
from lab.paths import LabPaths

CONTROLLER = "controller"
AGENT = "agent"
ZTUNNEL = "ztunnel"
PACKAGES = {CONTROLLER: "controller", AGENT: "daemonset", ZTUNNEL: "ztunnel"}

CONTROL_PORT = 15012
CREDENTIALS_RENEWED_EVERY_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user may choose for the mesh of a lab."""

    trust_domain: str = "cluster.local"
    root_namespace: str = "culvert-system"
    istio_labels: bool = False
    ztunnel_args: tuple[str, ...] = ()
    controller_args: tuple[str, ...] = ()


def missing() -> list[str]:
    """Components that this installation does not have."""
    return [name for name, package in PACKAGES.items() if not _is_installed(package)]


def controller(paths: LabPaths, settings: Settings) -> list[str]:
    """The control plane: reads the lab's objects, serves every node."""
    return [
        *_python(PACKAGES[CONTROLLER]),
        "serve",
        "--source=files",
        f"--manifests={paths.manifests}",
        f"--state={paths.controller_state}",
        f"--listen={plan.CONTROLLER4}:{CONTROL_PORT}",
        f"--trust-domain={settings.trust_domain}",
        f"--root-namespace={settings.root_namespace}",
        f"--cluster-domain={CLUSTER_DOMAIN}",
        *(["--istio-labels"] if settings.istio_labels else []),
        *settings.controller_args,
    ]


def credential(paths: LabPaths, settings: Settings, node: Node) -> list[str]:
    """Issues a node's client certificate into its runtime directory, offline."""
    return [
        *_python(PACKAGES[CONTROLLER]),
        "credential",
        f"--state={paths.controller_state}",
        f"--trust-domain={settings.trust_domain}",
        f"--node={node.name}",
        f"--out={node.runtime / 'credentials'}",
    ]


def agent(node: Node) -> list[str]:
    """The node agent."""
    return [*_python(PACKAGES[AGENT]), *_node_arguments(node)]


def ztunnel(node: Node, settings: Settings) -> list[str]:
    """The node proxy."""
    return [*_python(PACKAGES[ZTUNNEL]), *_node_arguments(node), *settings.ztunnel_args]


def environment(base: dict[str, str]) -> dict[str, str]:
    """Their environment: the modules of this installation, also from a checkout that is not installed."""
    return {**base, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "PYTHONUNBUFFERED": "1"}


def unload(key: str) -> list[str]:
    """Takes a node's programs, links and maps out of the kernel."""
    return [*_python("bpf.loader"), "unload", "--node", key]


def _node_arguments(node: Node) -> Iterable[str]:
    return (
        f"--node={node.name}",
        f"--key={node.key}",
        f"--runtime={node.runtime}",
        f"--controller={plan.CONTROLLER4}:{CONTROL_PORT}",
    )


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"{package}.__main__") is not None
    except ModuleNotFoundError:
        return False
