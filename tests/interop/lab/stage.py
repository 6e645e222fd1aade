"""Envoy and openssl against a whole mesh: enrolled pods, captured connections, certificates of the mesh's own CA.

node-a: shop/client (enrolled), foreign/caller (not enrolled: Envoy as HBONE client, and independent TLS clients)
node-b: shop/server (enrolled), foreign/envoy (not enrolled; marked as speaking HBONE: Envoy as HBONE server)
"""

import contextlib
import datetime
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from controller.ca import keys
from controller.ca.authority import Authority, Lifetimes
from controller.ca.issuer import load
from lab.paths import LabPaths
from mesh.netns import inside
from tests.support.pki import Credential
from tests.support.sockets import listen, until

ROOT = Path(__file__).resolve().parents[3]
APP = 7000

T = TypeVar("T")


def pod(namespace: str, name: str, node: str, **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {
            "nodeName": node,
            "serviceAccountName": name,
            "containers": [{"name": "idle", "command": ["sleep", "infinity"]}],
        },
    }


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


ENROLLED = {"culvert.io/mesh": "enabled", "istio.io/dataplane-mode": "ambient"}
OBJECTS = [
    namespace("shop", **ENROLLED),
    namespace("foreign"),
    pod("shop", "client", "node-a"),
    pod("foreign", "caller", "node-a"),
    pod("shop", "server", "node-b"),
    pod("foreign", "envoy", "node-b", **{"ambient.istio.io/redirection": "enabled"}),
]


class Lab:
    """A lab with the mesh; what happens in its pods happens on this process's sockets."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.pods: dict[str, dict[str, Any]] = {}

    def culvert(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "cli", "lab", *arguments, "--lab", self.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self) -> None:
        self.write("objects", *OBJECTS)
        try:
            self.culvert("up", str(self.folder), "--istio-labels")
        except BaseException:  # it may stay up to be looked at, or not have come up at all
            with contextlib.suppress(AssertionError):
                self.culvert("down")
            raise
        status = json.loads(self.culvert("status", "--json"))
        self.pods = {found["name"]: found for found in status["pods"]}

    def write(self, name: str, *objects: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        return path

    def ip(self, name: str) -> str:
        return str(self.pods[name]["ips"][0])

    def netns(self, name: str) -> Path:
        return Path(self.pods[name]["netns"])

    def within(self, name: str, do: Callable[[], T]) -> T:
        """Do something in a pod's network namespace."""
        return inside(self.netns(name), do)

    def dial(self, source: str, ip: str, port: int) -> socket.socket:
        return self.within(source, lambda: socket.create_connection((ip, port), 10))

    def listen(self, name: str, port: int = APP) -> socket.socket:
        return self.within(name, lambda: listen("0.0.0.0", port))

    def credential(self, account: str) -> Credential:
        """A certificate of the mesh's own authority."""
        now = datetime.datetime.now(datetime.UTC)
        issuer = load(LabPaths(self.name).controller_state / "ca", now)
        key = keys.new_key()
        names = keys.uris([f"spiffe://cluster.local/ns/foreign/sa/{account}"])
        issued = Authority(issuer, Lifetimes(), lambda: now).sign(key.public_key(), names, datetime.timedelta(hours=1))
        *chain, roots = issued.pem_chain
        return Credential("".join(chain), keys.key_pem(key).decode(), roots)

    def log(self, node: str) -> str:
        """The access log of a node's ztunnel."""
        return (LabPaths(self.name).logs / "nodes" / node / "ztunnel.log").read_text()

    def logged(self, node: str, *words: str) -> str:
        """A line of the access log that has all these words; waits for it."""

        def found() -> list[str]:
            return [line for line in self.log(node).splitlines() if all(word in line for word in words)]

        until(lambda: bool(found()), f"a line with {words} in the log of {node}")
        return found()[-1]


def listening(lab: Lab, name: str, port: int) -> None:
    """Wait until somebody listens on a port of a pod, without connecting to it."""

    def is_there() -> bool:
        rows = lab.within(name, Path("/proc/thread-self/net/tcp").read_text).splitlines()[1:]
        return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)

    until(is_there, f"a listener on port {port} of pod {name}")
