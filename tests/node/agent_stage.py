"""A node for tests of the agent: namespaces, the real agent as a process, and stand-ins for ztunnel and controller.

The agent, the programs and the sockets are real; a stand-in only answers the wire protocol and opens the listeners
that ztunnel would open.

    out ---- node (agent, controller stub) ---- pod a, pod b
"""

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpf.plane import Note, NoteKind, Plane
from mesh import netns, seqpacket, zds
from tests.bpf.topology import Place, Topology
from tests.unit.daemonset.controller import ControllerStub

NODE = "n1"
STATUS_PORT = 15022
PORTS = (15001, 15006, 15008)


def until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> Any:
    """Wait until a condition holds and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)
    return found


class ZtunnelStub:
    """Connects to the agent, serves pods with three listeners each and remembers what it heard; a context manager."""

    def __init__(self, runtime: Path, plane: Plane) -> None:
        self.heard: list[zds.Message] = []
        self.pods: dict[str, dict[int, socket.socket]] = {}
        self.answers = True
        self._plane = plane
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._path = runtime / "ztunnel.sock"
        self._thread = threading.Thread(target=self._run, name="ztunnel stub")

    def __enter__(self) -> "ZtunnelStub":
        until(self._path.exists, "the agent's socket")
        self._socket.connect(str(self._path))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for uid in list(self.pods):
            self._drop(uid)

    def _run(self) -> None:
        protocol = zds.Connection(zds.Role.ZTUNNEL)
        with contextlib.suppress(OSError):
            seqpacket.send(self._socket, protocol.send(zds.Hello()))
            while (packet := seqpacket.receive(self._socket, zds.MAX_PACKET_BYTES)) is not None:
                message = protocol.receive(packet.data, packet.descriptors)
                self.heard.append(message)
                error = self._apply(message, packet.descriptors)
                packet.close()
                seqpacket.send(self._socket, protocol.send(zds.Ack(error)))

    def _apply(self, message: zds.Message, descriptors: tuple[int, ...]) -> str:
        if isinstance(message, zds.Add) and message.uid not in self.pods:
            try:
                self.pods[message.uid] = netns.inside(descriptors[0], self._listen)
            except OSError as error:
                assert error.errno == errno.EADDRINUSE
                return f"{zds.PORT_IN_USE}: {error}"
        elif isinstance(message, zds.Del):
            self._drop(message.uid)
        return ""

    def _listen(self) -> dict[int, socket.socket]:
        made: dict[int, socket.socket] = {}
        try:
            for port in PORTS:
                listener = socket.socket()
                made[port] = listener
                self._plane.put_note(listener, Note(NoteKind.OWN))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("0.0.0.0", port))
                listener.listen(64)
                listener.settimeout(5)
                if port != 15001:
                    self._plane.put_listener(netns.cookie_of_socket(listener), port, listener)
        except OSError:
            for listener in made.values():
                listener.close()
            raise
        return made

    def _drop(self, uid: str) -> None:
        for listener in self.pods.pop(uid, {}).values():
            listener.close()


class AgentStage:
    """Everything of one node; a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self.net = Topology(f"cvf-{os.getpid()}")
        self.key = f"cvf-{os.getpid()}-n1"
        self.runtime = Path("/run/culvert") / self.key
        self.controller = ControllerStub(self.runtime / "credentials")
        self.agent: subprocess.Popen[bytes] | None = None
        self._planes: list[Plane] = []

    def __enter__(self) -> "AgentStage":
        self.net.build()
        self.net.node.run(self.controller.__enter__)
        self.label(shop={})
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for plane in self._planes:
            plane.close()
        self.controller.__exit__(None, None, None)
        self.loader("unload")
        self.net.remove()
        shutil.rmtree(self.runtime, ignore_errors=True)

    @property
    def plane(self) -> Plane:
        """The node's maps, opened anew."""
        self._planes.append(Plane.open(self.key))
        return self._planes[-1]

    def loader(self, verb: str, key: str = "") -> None:
        command = [sys.executable, "-m", "bpf.loader", verb, "--node", key or self.key]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    # -- what the lab does

    def label(self, **namespaces: dict[str, str]) -> None:
        self.write(self.runtime / "namespaces.json", {name: {"labels": labels} for name, labels in namespaces.items()})

    def enable(self) -> None:
        self.label(shop={"culvert.io/mesh": "enabled"})

    def add_pod(self, name: str, place: Place, **changes: Any) -> None:
        document = {
            "uid": f"uid-{name}",
            "namespace": "shop",
            "name": name,
            "service_account": name,
            "node": NODE,
            "ips": [place.ip4, place.ip6],
            "netns": str(place.path),
            "labels": {},
            "annotations": {},
            "host_network": False,
        }
        self.write(self.runtime / "pods" / f"shop_{name}.json", document | changes)

    def remove_pod(self, name: str) -> None:
        (self.runtime / "pods" / f"shop_{name}.json").unlink()

    @staticmethod
    def write(path: Path, document: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document))
        temporary.replace(path)

    # -- the agent

    def start(self, *settings: str, ready: bool = True) -> None:
        command = ["nsenter", f"--net={self.net.node.path}", sys.executable, "-m", "daemonset"]
        command += ["--node", NODE, "--key", self.key, "--runtime", str(self.runtime)]
        command += ["--controller", self.controller.address, "--settle-s", "0.2", *settings]
        with (self.runtime / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if ready:
            until(lambda: self.ready, f"agent ready; its log: {self.log[-2000:]}", 30)

    def stop(self, number: int = 15) -> int:
        """End the agent by a signal; its exit status."""
        if self.agent is None:
            return 0
        if self.agent.poll() is None:
            self.agent.send_signal(number)
        status = self.agent.wait(20)
        self.agent = None
        return status

    @property
    def log(self) -> str:
        return (self.runtime / "agent.log").read_text()

    @property
    def ready(self) -> bool:
        try:
            return self.get("/healthz/ready") == "ready\n"
        except OSError:
            assert self.agent is None or self.agent.poll() is None, f"the agent has ended:\n{self.log[-2000:]}"
            return False

    def get(self, path: str) -> str:
        def fetch() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{STATUS_PORT}{path}", timeout=5) as answer:
                text: str = answer.read().decode()
                return text

        try:
            return self.net.node.run(fetch)
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def pod(self, name: str) -> dict[str, Any]:
        """The status of a pod; empty when it has none."""
        rows: list[dict[str, Any]] = json.loads(self.get("/pods"))
        return next((row for row in rows if row["name"] == name), {})

    def reaches(self, name: str, state: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """Wait until a pod's status has a state ("" : it has no status)."""
        until(lambda: self.pod(name).get("state", "") == state, f"pod {name} {state}", timeout_s)
        return self.pod(name)
