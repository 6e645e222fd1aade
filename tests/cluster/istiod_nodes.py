"""Two nodes of a lab whose agents and ztunnels, whole processes, work under Istio's control plane.

    node-a                         node-b                     machine
    | shop/client, shop/other   |  | shop/web             |
    | legacy/outside            |--| legacy/server        |   kube-apiserver, istiod
    | agent, ztunnel ----- 127.0.0.1:15012 on each node, by a relay of the test's ------> |

The lab runs the pods; the API server is told of them, with the annotation that an agent on Kubernetes would write.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from mesh.kube.api import Api, Document
from mesh.netns import inside
from tests.cluster.istiod import CAPTURED, NAME, NAMESPACE, ZTUNNEL, Stage
from tests.cluster.objects import namespace, pod, put, until
from tests.node import lab_stage
from tests.node.mesh_stage import Mesh, topology
from tests.support.machine import alone
from tests.support.sockets import listen

PORT = 15012
CLIENT = Path(__file__).parents[1] / "node" / "apps" / "client.py"
READY_S = 60.0


class Node:
    """The agent and the ztunnel of one node."""

    def __init__(self, entry: dict[str, Any], folder: Path) -> None:
        self.name, self.key, self.netns = entry["name"], entry["key"], Path(entry["netns"])
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, token: Path, roots: Path, address: str) -> None:
        """Start both, as an init system would."""
        common = [f"--node={self.name}", f"--key={self.key}", f"--runtime=/run/culvert/{self.key}"]
        common += [f"--controller=127.0.0.1:{PORT}", f"--controller-name={NAME}", "--control-plane=istio"]
        common += [f"--token={token}", f"--roots={roots}"]
        own = [f"--pod-name={ZTUNNEL}-{self.name}", f"--pod-namespace={NAMESPACE}", f"--instance-ip={address}"]
        self._launch("daemonset", common)
        self._launch("ztunnel", [*common, *own, "--log-format=json"])

    def _launch(self, module: str, arguments: list[str]) -> None:
        argv = ["nsenter", f"--net={self.netns}", sys.executable, "-m", module, *arguments]
        with self.log(module).open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(lab_stage.ROOT), "PYTHONUNBUFFERED": "1"}
            self._running.append(subprocess.Popen(argv, stdout=log, stderr=log, cwd="/", env=environment))

    def log(self, module: str) -> Path:
        """What one of them says."""
        return self._folder / f"{self.name}-{module}.log"

    def ask(self, url: str) -> Any:
        """A document of one of their ports, `:PORT/PATH`."""

        def get() -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1{url}", timeout=2) as answer:
                return json.load(answer)

        return inside(self.netns, get)

    def is_ready(self) -> bool:
        """ztunnel serves, and the agent has captured what shall be."""
        with contextlib.suppress(OSError):
            dump = self.ask(":15000/config_dump")
            states = {entry["state"] for entry in self.ask(":15022/pods")}
            return states == {"captured"} and bool(dump["workloads"])
        return False

    def connections(self) -> list[dict[str, Any]]:
        """The lines of its access log."""
        lines = self.log("ztunnel").read_text().splitlines()
        return [json.loads(line) for line in lines if '"scope":"access"' in line]

    def end(self) -> None:
        """End both and take the programs out."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        unload = [sys.executable, "-m", "bpf.loader", "unload", "--node", self.key]
        subprocess.run(unload, check=False, capture_output=True, timeout=60)


class Nodes:
    """The lab, its nodes and the API server that stands for it."""

    def __init__(self, lab: Mesh, api: Api, nodes: list[Node]) -> None:
        self.lab, self.api = lab, api
        self.by_name = {node.name: node for node in nodes}

    def reaches(self, source: str, host: str, port: int) -> bool:
        """Whether a pod's connection is served."""
        done = self.lab.run(source, "python3", str(CLIENT), "names", host, str(port))
        return done.returncode == 0


@contextlib.asynccontextmanager
async def nodes(stage: Stage, folder: Path) -> AsyncIterator[Nodes]:
    """All of it, for as long as the block runs."""
    own = lab_stage.name("istio")
    (folder / "topology.yaml").write_text(yaml.safe_dump_all(topology()))
    with alone():
        try:
            done = await asyncio.to_thread(
                lambda: lab_stage.culvert("lab", "up", str(folder), "--lab", own, "--no-mesh", timeout=120)
            )
            assert done.returncode == 0, done.stderr
            lab, api = Mesh(own), stage.server.api()
            status = lab.status()
            await _announce(api, status)
            async with contextlib.AsyncExitStack() as stack:
                made = [await stack.enter_async_context(_working(stage, entry, folder)) for entry in status["nodes"]]
                for node in made:
                    await _until_ready(node)
                yield Nodes(lab, api, made)
        finally:
            await asyncio.to_thread(lambda: lab_stage.culvert("lab", "down", "--lab", own))


@contextlib.asynccontextmanager
async def _working(stage: Stage, entry: dict[str, Any], folder: Path) -> AsyncIterator[Node]:
    """A node of the lab with its processes, and istiod within their reach."""
    node = Node(entry, folder)
    shown = await stage.credentials(node.name)
    assert shown.token is not None and shown.roots is not None
    async with _relay(node.netns, stage.istiod.port):
        try:
            node.start(shown.token, shown.roots, entry["ips"][0])
            yield node
        finally:
            await asyncio.to_thread(node.end)


async def _until_ready(node: Node) -> None:
    try:
        await until(lambda: asyncio.to_thread(node.is_ready), f"{node.name} is ready", READY_S)
    except AssertionError:
        for module in ("daemonset", "ztunnel"):
            print(node.log(module).read_text()[-3000:])
        raise


async def _announce(api: Api, status: dict[str, Any]) -> None:
    """Tell the API server what runs in the lab."""
    for name, labels in (("shop", {"istio.io__dataplane-mode": "ambient"}), ("legacy", {})):
        await namespace(api, name, **labels)
    for entry in status["pods"]:
        await put(api, _document(entry))
    for document in topology():
        if document["kind"] == "Service":
            del document["spec"]["ipFamilyPolicy"], document["spec"]["type"]
            await put(api, document)


def _document(entry: dict[str, Any]) -> Document:
    ips = [ip for ip in entry["ips"] if ":" not in ip]
    marks = CAPTURED if entry["namespace"] == "shop" else {}
    labels = {"app": entry["name"]}
    made = pod(entry["name"], ips[0], entry["namespace"], entry["node"], labels=labels, annotations=marks)
    made["spec"]["serviceAccountName"] = entry["name"]
    return made


@contextlib.asynccontextmanager
async def _relay(netns: Path, port: int) -> AsyncIterator[None]:
    """From a node's own loopback to the machine's, where istiod listens; while that is away it refuses."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            theirs, ours = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_copy(reader, ours), _copy(theirs, writer))
        writer.close()

    listener: socket.socket = inside(netns, lambda: listen("127.0.0.1", PORT))
    async with await asyncio.start_server(serve, sock=listener) as server:
        yield
        server.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()
