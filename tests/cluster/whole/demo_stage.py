"""The stage of `culvert demo` on a whole cluster: what its claims ask of a lab, asked of Kubernetes."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cli.demo.stage import APPS as DEMO_APPS
from cli.demo.stage import Stage
from tests.cluster.kube.place import NodePlace
from tests.cluster.whole.objects import APPS
from tests.cluster.whole.stage import SYSTEM, Whole

NAMESPACES = ("shop", "legacy", "late")
COMPONENTS = {"agent": "daemonset", "ztunnel": "ztunnel"}


class ClusterStage(Stage):
    """A whole cluster as the demo's claims use it."""

    # Kubelet looks once a second what has ended, and has other work before it starts it again.
    restart_s = 12.0
    recovery_s = 3.0

    def __init__(self, whole: Whole, folder: Path) -> None:
        super().__init__("whole")
        self._whole = whole
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where captures may be written."""
        return self._folder

    def command(self, target: str, *argv: str) -> list[str]:
        """The command line of a command in a pod, on a node or on the link between them."""
        if target == "fabric":
            return ["nsenter", f"--net={self._whole.place.netns}", *argv]
        kind, _, name = target.partition("/")
        if kind == "node":
            return ["nsenter", f"--net={self._node(name).netns}", *argv]
        container = "python" if argv[0] == "python3" else "programs"
        words = [word.replace(str(DEMO_APPS), APPS) for word in argv]
        return self._whole.command(name, *words, namespace=kind, container=container)

    def status(self) -> dict[str, Any]:
        """What the claims read of `lab status --json`."""
        pods = self._whole.cluster.get("pods", "-A")["items"]
        services = self._whole.cluster.get("services", "-n", "shop")["items"]
        ours = [pod for pod in pods if pod["metadata"]["namespace"] == SYSTEM]
        nodes = [self._node_status(f"node-{number}", ours) for number in (1, 2)]
        controllers = [pod for pod in ours if pod["metadata"]["name"].startswith("culvert-controller-")]
        controller = {"restarts": sum(_restarts(pod) for pod in controllers), "last_end": _last_ends(controllers)}
        return {
            "pods": [_pod(pod) for pod in pods if pod["metadata"]["namespace"] in NAMESPACES],
            "services": [_service(one) for one in services],
            "nodes": nodes,
            "mesh": {"components": {"controller": controller}},
        }

    def apply(self, text: str) -> None:
        """Apply manifests given as text."""
        self._whole.cluster.apply([one for one in yaml.safe_load_all(text) if one])

    def delete(self, kind: str, path: str) -> None:
        """Delete an object."""
        namespace, _, name = path.partition("/")
        self._whole.cluster.kubectl("delete", kind.lower(), "-n", namespace, name)

    def label(self, namespace: str, value: str | None) -> None:
        """Enrol a namespace, or not."""
        change = f"culvert.io/mesh={value}" if value else "culvert.io/mesh-"
        self._whole.cluster.kubectl("label", "namespace", namespace, change)

    def log(self, node: str, since: int = 0) -> str:
        """What a node's ztunnel wrote, from a position on; access log lines as they are in a lab."""
        lines = self._log_bytes(node)[since:].decode(errors="replace").splitlines()
        return "\n".join(_as_text(line) for line in lines)

    def log_end(self, node: str) -> int:
        """The position of what a node's ztunnel writes next."""
        return len(self._log_bytes(node))

    def _log_bytes(self, node: str) -> bytes:
        folder = self._node(node).state / "pod-logs"
        return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{SYSTEM}_culvert-node-*/ztunnel/*.log")))

    def _node(self, name: str) -> NodePlace:
        return self._whole.place.nodes[int(name.removeprefix("node-")) - 1]

    def _node_status(self, name: str, ours: list[dict[str, Any]]) -> dict[str, Any]:
        node = self._node(name)
        pods = [pod for pod in ours if pod["metadata"]["name"].startswith("culvert-node-")]
        (pod,) = (pod for pod in pods if pod["spec"]["nodeName"] == node.name)
        components = {
            part: {"pid": pid_of(module, node), "restarts": _restarts(pod, part), "last_end": _last_ends([pod], part)}
            for part, module in COMPONENTS.items()
        }
        return {"name": name, "ips": [str(node.address4), str(node.address6)], "components": components}


def pid_of(module: str, node: NodePlace) -> int | None:
    """The process of a component on a node, as this machine numbers it."""
    words = f"-m\0{module}\0--node={node.name}\0".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if words in path.read_bytes():
                return int(path.parent.name)
    return None


def _containers(pod: dict[str, Any], name: str = "") -> Iterator[dict[str, Any]]:
    for state in pod["status"].get("containerStatuses", ()):
        if name in ("", state["name"]):
            yield state


def _restarts(pod: dict[str, Any], container: str = "") -> int:
    return sum(state["restartCount"] for state in _containers(pod, container))


def _last_ends(pods: list[dict[str, Any]], container: str = "") -> str:
    return "; ".join(json.dumps(state.get("lastState")) for pod in pods for state in _containers(pod, container))


def _pod(pod: dict[str, Any]) -> dict[str, Any]:
    metadata, status = pod["metadata"], pod["status"]
    capture = (metadata.get("annotations") or {}).get("culvert.io/capture", "")
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "ips": [one["ip"] for one in status.get("podIPs", ())],
        "pid": [state.get("containerID") for state in _containers(pod)],
        "restarts": _restarts(pod),
        "ready": all(state["ready"] for state in _containers(pod)),
        "mesh": {"state": "captured" if capture == "enabled" else "", "settled": capture in ("enabled", "")},
    }


def _service(service: dict[str, Any]) -> dict[str, Any]:
    spec = service["spec"]
    ports = [{"port": port["port"], "node_port": port.get("nodePort")} for port in spec["ports"]]
    return {"name": service["metadata"]["name"], "ips": spec["clusterIPs"], "ports": ports}


def _as_text(line: str) -> str:
    """A line of a container's log: time, stream, whether it is whole, and what was said."""
    said = re.sub(r"^\S+ \S+ \S ", "", line)
    if '"scope":"access"' not in said:
        return said
    return " ".join(
        f"{key}={json.dumps(value) if ' ' in str(value) else value}" for key, value in json.loads(said).items()
    )
