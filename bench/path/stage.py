"""The topology of the path benchmarks: one lab, two nodes with a router between them, and the arms that cross it.

    node-a                              node-b
    +------------------------+          +------------------------+
    | meshed/client          |          | meshed/server          |   culvert: captured, ztunnel to ztunnel
    |   ztunnel              |----------|   ztunnel              |
    | plain/client           |          | plain/server           |   direct: no mesh
    |   Envoy                |          |   Envoy                |   envoy: an HBONE pair beside the applications
    +------------------------+          +------------------------+

Applications of all arms are the same two programs. What an arm's own processes are, and on which side they stand, is
known here, so that they can be pinned, and their processor time and memory read.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import client
from lab.client import StartOptions
from lab.components import Settings
from tests.support import envoy, pki
from tests.support.envoy import Address

APP_PORT = 7000
ENVOY_PORT = 9100
HBONE_PORT = 15008
NAMESPACES = {"meshed": {"culvert.io/mesh": "enabled"}, "plain": {}}
NODES = {"client": "node-a", "server": "node-b"}
# A benchmark opens and closes connections faster than their ports come back by default.
PORT_SYSCTLS = ("net.ipv4.ip_local_port_range=2048 64999", "net.ipv4.tcp_tw_reuse=1")


@dataclass
class Arm:
    """One way from a client application to a server application."""

    name: str
    netns: str  # of the client application
    ip: str
    port: int
    server: int = 0  # process of the server application
    client_side: list[int] = field(default_factory=list)
    server_side: list[int] = field(default_factory=list)

    @property
    def proxies(self) -> list[int]:
        """The processes that carry, both ends."""
        return self.client_side + self.server_side


def in_netns(netns: str, command: list[str]) -> list[str]:
    """A command line that runs in a network namespace, and nowhere else different."""
    return ["nsenter", f"--net={netns}", *command]


def objects() -> list[dict[str, Any]]:
    """The manifests: two pods in the mesh, two that are not."""
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in NODES.values()]
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in NAMESPACES.items()
    ]
    return [*nodes, *spaces, *(_pod(space, name) for space in NAMESPACES for name in NODES)]


def _pod(namespace: str, name: str) -> dict[str, Any]:
    container = {"name": "app", "command": ["sleep", "infinity"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": NODES[name], "serviceAccountName": name, "containers": [container]},
    }


class Stage:
    """A running lab."""

    def __init__(self, lab: str, load: Path) -> None:
        self.lab = lab
        self.load = load
        status = client.order(lab, "status")
        self._pods = {f"{pod['namespace']}/{pod['name']}": pod for pod in status["pods"]}
        self._nodes = {node["name"]: node for node in status["nodes"]}
        self.controller: int = status["mesh"]["components"]["controller"]["pid"]

    def component(self, side: str, name: str) -> int:
        """The process of a node's `agent` or `ztunnel`."""
        found: int = self._nodes[NODES[side]]["components"][name]["pid"]
        return found

    def netns(self, pod: str) -> str:
        """Path of a pod's network namespace."""
        found: str = json.loads(Path(f"/run/culvert/labs/{self.lab}/pods/{pod.replace('/', '_')}.json").read_text())[
            "netns"
        ]
        return found

    def ip(self, pod: str) -> str:
        """A pod's first address."""
        found: str = self._pods[pod]["ips"][0]
        return found

    @contextmanager
    def serving(self, pod: str) -> Iterator[int]:
        """The server application in a pod, on all its addresses; yields its process."""
        command = in_netns(self.netns(pod), [str(self.load), "serve", "0.0.0.0", str(APP_PORT)])
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the server application of {pod} does not start")
            yield process.pid  # nsenter has become it
        finally:
            process.kill()
            process.wait()

    def prepare_ports(self) -> None:
        """Make room for many short connections."""
        for pod in self._pods:
            for setting in PORT_SYSCTLS:
                subprocess.run(in_netns(self.netns(pod), ["sysctl", "-qw", setting]), check=True)

    def metric(self, side: str, name: str, *pairs: str) -> float:
        """Sum of a ztunnel metric's samples that carry these label pairs."""
        command = in_netns(self._nodes[NODES[side]]["netns"], ["curl", "-s", "http://127.0.0.1:15020/metrics"])
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and all(p in line for p in pairs)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def lab_up(name: str, ztunnel_args: tuple[str, ...], load: Path) -> Iterator[Stage]:
    """A lab with the mesh, for as long as the block runs."""
    client.start(name, StartOptions(settings=Settings(ztunnel_args=ztunnel_args).to_json()))
    try:
        client.order(name, "apply", 120.0, objects=objects())
        faults = client.wait_ready(name, 60.0, lambda _: None)
        if faults:
            raise RuntimeError("; ".join(faults))
        stage = Stage(name, load)
        stage.prepare_ports()
        yield stage
    finally:
        client.take_down(name)


def without_bounds(config: dict[str, Any]) -> dict[str, Any]:
    """Envoy's advice for benchmarks: no circuit breaker stands in the way (the default is 1,024)."""
    most = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 1 << 20)
    for cluster in config["static_resources"]["clusters"]:
        cluster["circuit_breakers"] = {"thresholds": [most]}
    return config


@contextmanager
def direct_and_envoy(stage: Stage, folder: Path) -> Iterator[list[Arm]]:
    """The two arms of the pods outside the mesh."""
    netns, ip = stage.netns("plain/client"), stage.ip("plain/server")
    authority = pki.Authority()
    ours, theirs = (authority.issue(f"spiffe://cluster.local/ns/plain/sa/{name}") for name in NODES)
    app, hbone = Address(ip, APP_PORT), Address(ip, HBONE_PORT)
    client_config = without_bounds(envoy.client_config(Address("127.0.0.1", ENVOY_PORT), hbone, app, ours))
    server_config = without_bounds(envoy.server_config(hbone, Address("127.0.0.1", APP_PORT), theirs))
    with ExitStack() as stack:
        server = stack.enter_context(stage.serving("plain/server"))
        there = stack.enter_context(envoy.running(server_config, folder, "server", Path(stage.netns("plain/server"))))
        here = stack.enter_context(envoy.running(client_config, folder, "client", Path(netns)))
        direct = Arm("direct", netns, ip, APP_PORT, server)
        proxied = Arm("envoy", netns, "127.0.0.1", ENVOY_PORT, server, [here.process.pid], [there.process.pid])
        yield [direct, proxied]


@contextmanager
def culvert(stage: Stage, name: str) -> Iterator[Arm]:
    """The arm of the pods in the mesh. Raises RuntimeError when its connections do not travel by mutual TLS."""
    sides = {side: [stage.component(side, "ztunnel")] for side in NODES}
    with stage.serving("meshed/server") as server:
        arm = Arm(name, stage.netns("meshed/client"), stage.ip("meshed/server"), APP_PORT, server, **_sides(sides))
        run_load(stage, arm, "rr", "0.1", "1024", "1")
        encrypted = stage.metric(
            "server", "istio_tcp_connections_opened_total", 'connection_security_policy="mutual_tls"'
        )
        if encrypted < 1:
            raise RuntimeError("the connections of the enrolled pods do not travel by mutual TLS")
        yield arm


def _sides(pids: dict[str, list[int]]) -> dict[str, list[int]]:
    return {"client_side": pids["client"], "server_side": pids["server"]}


def _load_command(stage: Stage, arm: Arm, mode: str, arguments: tuple[str, ...], cpus: str) -> list[str]:
    command = [str(stage.load), mode, arm.ip, str(arm.port), *arguments]
    return in_netns(arm.netns, ["taskset", "-c", cpus, *command] if cpus else command)


@contextmanager
def streaming(stage: Stage, arm: Arm, seconds: float, cpus: str = "") -> Iterator[int]:
    """One connection that streams for so long, beside what the block does; yields its process.

    Raises RuntimeError when its bytes come out wrong.
    """
    command = _load_command(stage, arm, "bulk", (str(seconds), "1"), cpus)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process.pid
            if process.wait(60.0):
                raise RuntimeError(f"{arm.name}: the stream beside the load broke")
        finally:
            process.kill()


def run_load(stage: Stage, arm: Arm, mode: str, *arguments: str, cpus: str = "") -> dict[str, float]:
    """One run of the client application; its figures. Raises RuntimeError with what it complained of."""
    command = _load_command(stage, arm, mode, arguments, cpus)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{arm.name}: load {mode}: {done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def lab_name(purpose: str) -> str:
    """A name that no other run has."""
    return f"bench{purpose}{os.getpid()}"


def end_on_sigterm() -> None:
    """A benchmark that is told to end takes its labs down too."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
