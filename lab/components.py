"""The mesh components of a lab: which there are, and the command line of each. Nothing else knows them.

Standalone components, started exactly as a node's init system would start them: in the namespace of their node (the
controller in the fabric's), in the machine's mount and process namespaces, as root.
"""

import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lab import plan
from lab.dns import CLUSTER_DOMAIN
from lab.nodes import Node
from lab.paths import LabPaths

CONTROLLER = "controller"
AGENT = "agent"
ZTUNNEL = "ztunnel"
PACKAGES = {CONTROLLER: "controller", AGENT: "daemonset", ZTUNNEL: "ztunnel"}

CONTROL_PORT = 15012
CONTROLLER_NAME = "culvert-controller.culvert-system.svc"
# Where each says that it works; the controller's is asked from the fabric, the others from their node.
READY_PATH = "/healthz/ready"
READY_PORTS = {CONTROLLER: 15014, AGENT: 15022, ZTUNNEL: 15021}
# As the controller writes them; the certificate after the key it belongs to.
CREDENTIAL_FILES = ("key.pem", "cert.pem", "roots.pem")
CREDENTIALS_RENEWED_EVERY_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user may choose for the mesh of a lab."""

    trust_domain: str = "cluster.local"
    root_namespace: str = "culvert-system"
    istio_labels: bool = False
    ztunnel_args: tuple[str, ...] = ()
    agent_args: tuple[str, ...] = ()
    controller_args: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Read what `to_json` wrote."""
        given: dict[str, Any] = json.loads(text)
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**known)

    def to_json(self) -> str:
        """As one argument of the supervisor."""
        return json.dumps(asdict(self))


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
        f"--metrics-listen={plan.CONTROLLER4}:{READY_PORTS[CONTROLLER]}",
        f"--trust-domain={settings.trust_domain}",
        f"--root-namespace={settings.root_namespace}",
        f"--cluster-domain={CLUSTER_DOMAIN}",
        f"--dns-names={CONTROLLER_NAME}",
        f"--addresses={plan.CONTROLLER4},{plan.CONTROLLER6}",
        *(["--istio-labels"] if settings.istio_labels else []),
        *settings.controller_args,
    ]


def credential(paths: LabPaths, settings: Settings, node: str, folder: Path) -> list[str]:
    """Issues a node's client certificate into a directory, offline."""
    return [
        *_python(PACKAGES[CONTROLLER]),
        "credential",
        f"--state={paths.controller_state}",
        f"--trust-domain={settings.trust_domain}",
        f"--node={node}",
        f"--out={folder}",
    ]


def agent(node: Node, settings: Settings) -> list[str]:
    """The node agent."""
    istio = ["--istio-labels"] if settings.istio_labels else []
    return [*_python(PACKAGES[AGENT]), *_node_arguments(node), *istio, *settings.agent_args]


def ztunnel(node: Node, settings: Settings) -> list[str]:
    """The node proxy."""
    return [
        *_python(PACKAGES[ZTUNNEL]),
        *_node_arguments(node),
        f"--trust-domain={settings.trust_domain}",
        *settings.ztunnel_args,
    ]


def environment(base: dict[str, str]) -> dict[str, str]:
    """Their environment: the modules of this installation, also from a checkout that is not installed."""
    return {
        **base,
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }


def unload(key: str) -> list[str]:
    """Takes a node's programs, links and maps out of the kernel."""
    return [*_python("bpf.loader"), "unload", "--node", key]


def _node_arguments(node: Node) -> Iterable[str]:
    return (
        f"--node={node.name}",
        f"--key={node.key}",
        f"--runtime={node.runtime}",
        f"--controller={plan.CONTROLLER4}:{CONTROL_PORT}",
        f"--controller-name={CONTROLLER_NAME}",
    )


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"{package}.__main__") is not None
    except ModuleNotFoundError:
        return False
