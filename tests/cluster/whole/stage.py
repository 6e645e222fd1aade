"""A whole cluster with Culvert in it, and what may be asked of it and done to it."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bpf.paths import BPFFS, RUNTIME, escape
from tests.cluster import needs
from tests.cluster.kube import binaries
from tests.cluster.kube.cluster import Cluster
from tests.cluster.kube.place import NodePlace, Place
from tests.cluster.kube.processes import in_namespace, wait_until
from tests.cluster.whole import programs

SYSTEM = "culvert-system"
SHOP, CLIENT, WEB = "shop", "client", "http://web.shop/"
READY_S = 120.0

# One request: an HTTP status, or the name of what went wrong.
ASK = """
import sys, urllib.request
try: print(urllib.request.urlopen(sys.argv[1], timeout=10).status)
except OSError as error: print(type(getattr(error, "reason", error)).__name__)
"""


class Whole:
    """A context manager; leaves nothing on the machine. Raises binaries.Missing where the machine cannot have one."""

    def __init__(self) -> None:
        if needs.lacking():
            raise binaries.Missing([needs.lacking()])
        self.cluster = Cluster(Place("whole"))
        self.place = self.cluster.place

    def __enter__(self) -> "Whole":
        with tempfile.TemporaryDirectory(prefix="culvert-programs-") as folder:
            own = Path(folder) / "programs.tar"
            programs.write(own)
            self.cluster.up([needs.image(), own])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.down()
        # What an uninstallation that failed, or was never reached, has left of programs at the machine's cgroup root.
        for node in self.place.nodes:
            if (BPFFS / "culvert" / escape(node.name)).exists():
                unload = [sys.executable, "-m", "daemonset", "unload", "--key", node.name]
                subprocess.run(unload, check=False, capture_output=True, timeout=60)
            shutil.rmtree(RUNTIME / node.name, ignore_errors=True)

    # --- Culvert

    def install(self) -> None:
        """`culvert install`, as an administrator has it."""
        done = self.culvert("install", *self.install_settings, "--timeout", "240")
        assert not done.returncode, done.stderr

    @property
    def install_settings(self) -> list[str]:
        """Where the CNI directories of these nodes are, which share a file system."""
        state = self.place.state
        paths = f"cni.binDir={state},cni.confDir={state}"
        return ["--set", paths, "--set", "cni.binSubPath=$(NODE_NAME)/cni/bin,cni.confSubPath=$(NODE_NAME)/cni/net.d"]

    def culvert(self, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """The command line, as an administrator has it."""
        argv = [sys.executable, "-m", "cli", *words, "--kubeconfig", str(self.place.kubeconfig)]
        return in_namespace(self.place.netns, argv, capture_output=True, **options)

    def rolled_out(self, name: str, namespace: str = SYSTEM) -> None:
        """Wait until a Deployment or DaemonSet is what it should be."""
        self.cluster.kubectl("rollout", "status", "-n", namespace, name, f"--timeout={READY_S:.0f}s")

    def node_pods(self) -> list[dict[str, Any]]:
        """The agents and ztunnels, those on their way out as well."""
        return list(self.cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=culvert-node")["items"])

    def node_pod(self, node: NodePlace) -> dict[str, Any]:
        """The agent and the ztunnel of a node; raises LookupError."""
        for pod in self.node_pods():
            if pod["spec"]["nodeName"] == node.name and "deletionTimestamp" not in pod["metadata"]:
                return dict(pod)
        raise LookupError(f"no pod of ours on {node.name}")

    def access_log(self, node: NodePlace) -> list[dict[str, Any]]:
        """What the ztunnel of a node says of connections, since it was started."""
        name = self.node_pod(node)["metadata"]["name"]
        text = self.cluster.kubectl("logs", "-n", SYSTEM, name, "-c", "ztunnel", "--tail=-1")
        return [json.loads(line) for line in text.splitlines() if '"scope":"access"' in line]

    def conflists(self) -> list[dict[str, Any]]:
        """The CNI configuration of every node."""
        return [
            json.loads(path.read_text()) for node in self.place.nodes for path in node.cni_config.glob("*.conflist")
        ]

    # --- objects

    def pod(self, name: str, namespace: str = SHOP) -> dict[str, Any]:
        """A pod as the API server has it."""
        return dict(self.cluster.get("pod", "-n", namespace, name))

    def capture(self, name: str, namespace: str = SHOP) -> str:
        """The agent's annotation."""
        return str((self.pod(name, namespace)["metadata"].get("annotations") or {}).get("culvert.io/capture", ""))

    def warnings(self, pod: str, namespace: str = SHOP) -> str:
        """What a pod's events complain about."""
        chosen = f"involvedObject.name={pod},type=Warning"
        found = self.cluster.get("events", "-n", namespace, "--field-selector", chosen)
        return "\n".join(event["message"] for event in found["items"])

    def is_ready(self, name: str, namespace: str = SHOP) -> bool:
        """Whether all containers of a pod run and say that they can be used."""
        states = self.pod(name, namespace)["status"].get("containerStatuses", ())
        return bool(states) and all(state["ready"] for state in states)

    def ready(self, name: str, namespace: str = SHOP) -> None:
        """Wait until a pod is ready."""
        what = ("-n", namespace, f"pod/{name}", "--for=condition=Ready", f"--timeout={READY_S:.0f}s")
        self.cluster.kubectl("wait", *what)

    @contextmanager
    def applied(self, *objects: dict[str, Any]) -> Iterator[None]:
        """Objects of namespaces that are there for a while."""
        self.cluster.apply(objects)
        try:
            yield
        finally:
            for one in objects:
                metadata = one["metadata"]
                self.cluster.kubectl("delete", one["kind"].lower(), "-n", metadata["namespace"], metadata["name"])

    # --- pods from within

    def command(self, pod: str, *argv: str, namespace: str = SHOP, container: str = "python") -> list[str]:
        """The command line of a command in a pod."""
        kubectl = [str(binaries.find("kubernetes", "kubectl")), "--kubeconfig", str(self.place.kubeconfig)]
        words = ["exec", "-i", "-n", namespace, pod, "-c", container, "--", *argv]
        return ["nsenter", f"--net={self.place.netns}", *kubectl, *words]

    def status_of(self, url: str, pod: str = CLIENT, namespace: str = SHOP) -> str:
        """What a pod gets for a URL: an HTTP status, or the name of what went wrong."""
        command = self.command(pod, "python3", "-c", ASK, url, namespace=namespace)
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        return done.stdout.strip()

    def until(self, what: str, is_so: Callable[[], Any], timeout_s: float = READY_S) -> None:
        """Wait for something; raises TimeoutError."""
        wait_until(what, is_so, timeout_s)
