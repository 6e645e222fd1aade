"""A whole cluster with Culvert in it: two nodes, real pods of the project's own image (it has a Python)."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster.kube import binaries
from tests.cluster.kube.cluster import Cluster
from tests.cluster.kube.place import Place
from tests.cluster.kube.processes import in_namespace, wait_until

NAME = "localhost/culvert:dev"
SERVER = "import http.server as h; h.ThreadingHTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
READY_S = 90


def image() -> Path:
    """The image that `make image` has built; raises Missing."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(cache) / "culvert" / "image" / "culvert.tar"
    if not path.exists():
        raise binaries.Missing(["the image is not built: run `make image`"])
    return path


class Whole:
    """A context manager; leaves nothing on the machine."""

    def __init__(self) -> None:
        binaries.check_system()
        binaries.check_built("kubernetes", "coredns")
        self._image = image()
        self.cluster = Cluster(Place("whole"))
        self.place = self.cluster.place

    def __enter__(self) -> "Whole":
        self.cluster.up([self._image])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.down()

    # --- Culvert

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

    # --- pods

    def namespace(self, name: str, **labels: str) -> None:
        """Make a namespace."""
        self.cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}])

    def run(self, namespace: str, name: str, node: int, command: Sequence[str], account: str = "default") -> None:
        """Start a pod on a node; returns when it runs."""
        self.cluster.apply([self.pod(namespace, name, node, command, account)])
        self.cluster.kubectl("wait", "-n", namespace, f"pod/{name}", "--for=condition=Ready", f"--timeout={READY_S}s")

    def pod(
        self, namespace: str, name: str, node: int, command: Sequence[str], account: str = "default"
    ) -> dict[str, Any]:
        """A pod as an object."""
        container = {"name": "app", "image": NAME, "imagePullPolicy": "Never", "command": list(command)}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "nodeName": self.place.nodes[node].name,
                "serviceAccountName": account,
                "terminationGracePeriodSeconds": 1,
                "containers": [container],
            },
        }

    def serve(self, namespace: str, name: str, node: int) -> None:
        """A web server on 8080 with a Service of its name on 80."""
        ports = [{"port": 80, "targetPort": 8080}]
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}}
        self.cluster.apply([{**service, "spec": {"selector": {"app": name}, "ports": ports}}])
        self.run(namespace, name, node, ["/opt/culvert/bin/python", "-c", SERVER])

    def python(self, namespace: str, pod: str, code: str) -> "subprocess.CompletedProcess[str]":
        """Run a few lines of Python in a pod."""
        argv = ["exec", "-n", namespace, pod, "--", "/opt/culvert/bin/python", "-c", code]
        return self.cluster.run_kubectl(argv, capture_output=True)

    def status_of(self, namespace: str, pod: str, url: str) -> str:
        """What a pod gets for a URL: an HTTP status, or the name of what went wrong."""
        code = (
            "import urllib.request as u\n"
            f"try: print(u.urlopen({url!r}, timeout=10).status)\n"
            "except OSError as error: print(type(getattr(error, 'reason', error)).__name__)\n"
        )
        return self.python(namespace, pod, code).stdout.strip()

    def capture(self, namespace: str, pod: str) -> str:
        """The agent's annotation."""
        found = self.cluster.get("pod", "-n", namespace, pod)
        return str((found["metadata"].get("annotations") or {}).get("culvert.io/capture", ""))

    def until(self, what: str, is_so: Any, timeout_s: float = 60) -> None:
        """Wait for something; raises TimeoutError."""
        wait_until(what, is_so, timeout_s)

    def conflists(self) -> list[dict[str, Any]]:
        """The CNI configuration of every node."""
        return [
            json.loads(path.read_text()) for node in self.place.nodes for path in node.cni_config.glob("*.conflist")
        ]
