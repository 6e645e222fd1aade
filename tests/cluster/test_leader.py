"""Two controllers on one API server: any serves, one writes, and killing it under churn loses nothing.

churn ──> kube-apiserver ──┬──> controller one (leader) ──> node-a, a ztunnel's own client, which goes to two later
                           └──> controller two          ──> node-b, whose stream must not break
"""

import asyncio
import contextlib
import datetime
import itertools
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.ca.authority import Authority, Lifetimes
from controller.ca.credential import issue_credential
from controller.ca.issuer import load
from mesh.aio import Background
from mesh.channel import Credentials
from mesh.kube import resources
from mesh.kube.api import Api, Selection
from mesh.kube.resources import AUTHORIZATION_POLICIES as POLICIES
from mesh.kube.resources import Resource
from mesh.wire.workload_pb2 import Address
from mesh.xds import Update
from tests.cluster.alone import ApiAlone
from tests.cluster.kube.api_server import free_ports
from tests.cluster.mesh_objects import fresh
from tests.cluster.objects import define, namespace, pod, put, until
from tests.unit.controller.ca.hierarchy import files, root
from tests.unit.controller.nodes import FakeNode, channel_credentials, policy
from ztunnel.control.ads import AdsClient, NodeIdentity
from ztunnel.control.link import ControllerLink
from ztunnel.identity.svid import now_utc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NS = "churn"
DENY = {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}


class Process:
    """A controller of its own process."""

    def __init__(self, server: ApiAlone, folder: Path, lease_namespace: str, ca: Path) -> None:
        self.folder, self.ca = folder, ca
        self.port, self.metrics_port = free_ports(2)
        folder.mkdir()
        self.state = folder / "state"
        self.log = folder / "log"
        argv = [sys.executable, "-m", "controller", "serve", f"--state={self.state}", "--source=kubernetes"]
        argv += [f"--kubeconfig={server.kubeconfig}", "--elect", f"--lease-namespace={lease_namespace}"]
        argv += [f"--ca-dir={ca}"]
        argv += [f"--listen=127.0.0.1:{self.port}", f"--metrics-listen=127.0.0.1:{self.metrics_port}"]
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen([*argv, "--debug-listen=127.0.0.1:0"], stdout=log, stderr=log)

    def metrics(self) -> str:
        """What it says of itself; empty while it says nothing."""
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer,
        ):
            return str(answer.read().decode())
        return ""

    @property
    def leads(self) -> bool:
        return "culvert_controller_leader 1.0" in self.metrics()

    @property
    def is_ready(self) -> bool:
        url = f"http://127.0.0.1:{self.metrics_port}/healthz/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        self.popen.wait(20)

    def credential(self, name: str) -> Path:
        """What a node shows to any of them."""
        out = self.folder / name
        authority = Authority(load(self.ca, now_utc()), Lifetimes(), now_utc)
        issue_credential(authority, "cluster.local", name, out, datetime.timedelta(hours=1))
        return out

    @contextlib.asynccontextmanager
    async def node(self, name: str) -> AsyncIterator[FakeNode]:
        """A node that is connected to it."""
        proof = channel_credentials(self.credential(name))
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", proof) as channel:
            yield FakeNode(channel, name)


class Ztunnel:
    """A ztunnel's own client with the addresses of both: the first one that answers has it."""

    def __init__(self, name: str, folder: Path, *ports: int) -> None:
        self.held: dict[str, bytes] = {}
        address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self._link = ControllerLink(address, "localhost", Credentials(folder))
        identity = NodeIdentity(name, "ztunnel", "culvert-system", "127.0.0.1", "Kubernetes")
        self.client = AdsClient(identity, self._link, self._apply)

    def _apply(self, update: Update) -> dict[str, str]:
        self.held |= {changed.name: changed.value for changed in update.changed}
        for name in update.removed:
            self.held.pop(name, None)
        return {}

    @contextlib.asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        """Connected, again and again."""
        async with Background() as tasks:
            tasks.start(self.client.run(), "ztunnel")
            yield
        await self._link.close()


@pytest.fixture
def two(api_server: ApiAlone, tmp_path: Path) -> Iterator[list[Process]]:
    lease_namespace = fresh("lease")
    asyncio.run(_prepare(api_server, lease_namespace))
    ca = tmp_path / "ca"
    ca.mkdir()
    for name, content in files(root(now_utc())).items():
        (ca / name).write_bytes(content)
    processes = [Process(api_server, tmp_path / name, lease_namespace, ca) for name in ("one", "two")]
    try:
        yield processes
    finally:
        for one in processes:
            one.end(signal.SIGKILL)


async def _prepare(server: ApiAlone, lease_namespace: str) -> None:
    api = server.api()
    await define(api)
    await namespace(api, NS)
    await namespace(api, lease_namespace)


async def churn(api: Api, written: list[int]) -> None:
    """Pods come, move and go, as fast as the server takes it; a policy beside each tenth."""
    for number in itertools.count():
        await put(api, pod(f"p{number}", f"10.9.{number // 250}.{number % 250 + 1}", NS))
        if number % 10 == 0:
            await put(api, policy(f"deny-{number}", DENY, ns=NS))
        if number >= 20:
            await api.delete(resources.PODS, f"p{number - 20}", NS, grace_s=0)
        written[0] = number


async def condition_of(api: Api, name: str) -> dict[str, Any]:
    document = await api.get(resources.AUTHORIZATION_POLICIES, name, NS)
    conditions = document.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "Accepted"), {})


def test_killing_the_leader_under_churn_breaks_no_other_stream_and_loses_no_update(
    api_server: ApiAlone, two: list[Process]
) -> None:
    async def test() -> None:
        api = api_server.api()
        for one in two:
            await until(lambda one=one: one.is_ready, "ready: " + one.log.read_text()[-2000:])  # type: ignore[misc]
        await until(lambda: any(one.leads for one in two), "a leader")
        (leader,) = (one for one in two if one.leads)
        (other,) = (one for one in two if one is not leader)
        written = [0]
        ztunnel = Ztunnel("node-a", leader.credential("node-a"), leader.port, other.port)
        async with other.node("node-b") as node, node.streaming(), ztunnel.streaming(), Background() as tasks:
            await until(lambda: node.subscriber.is_synced and ztunnel.client.synced.is_set(), "the nodes are served")
            assert "node node-a connected" in leader.log.read_text()
            churning = tasks.start(churn(api, written), "churn")
            await until(lambda: written[0] > 40, "churn")
            leader.end(signal.SIGKILL)
            killed_at = time.monotonic()
            await until(lambda: other.leads, "the other takes over", 40)
            took_s = time.monotonic() - killed_at
            assert 8 < took_s < 30, f"{took_s:.1f} s: earlier than the lease allows, or late"
            await until(lambda: written[0] > 60, "more churn")
            churning.cancel()
            last = policy("last", DENY, ns=NS)
            await put(api, last)
            await until(lambda: f"{NS}/last" in node.held, "the last change at the node")
            for held in (node.held, ztunnel.held):
                await until_taken(api, held)
        assert "node node-a connected" in other.log.read_text()
        assert other.log.read_text().count("node node-b connected") == 1, "its stream has not broken"
        for name in ("last", f"deny-{written[0] // 10 * 10}", "deny-0"):
            await until(lambda name=name: is_accepted(api, name), f"the condition of {name}")  # type: ignore[misc]

    asyncio.run(test())


async def is_accepted(api: Api, name: str) -> bool:
    return bool((await condition_of(api, name)).get("status") == "True")


async def until_taken(api: Api, held_by_node: Mapping[str, bytes]) -> None:
    """The node holds what the API server has: no more, no less."""

    async def is_same() -> bool:
        pods = {item["metadata"]["name"]: item["status"].get("podIP") async for item in everything(api, resources.PODS)}
        prefix = f"Kubernetes//Pod/{NS}/"
        held = {
            name.removeprefix(prefix): str(ip_address(Address.FromString(value).workload.addresses[0]))
            for name, value in held_by_node.items()
            if name.startswith(prefix)
        }
        policies = {f"{NS}/{item['metadata']['name']}" async for item in everything(api, POLICIES)}
        # The churn may have ended between a pod and its address: such a pod is not announced.
        is_all = held == {name: address for name, address in pods.items() if address}
        return is_all and policies == {name for name in held_by_node if name.startswith(f"{NS}/")}

    await until(is_same, "the node holds what there is")


async def everything(api: Api, resource: Resource) -> AsyncIterator[dict[str, Any]]:
    async for page in api.pages(Selection(resource, NS)):
        for item in page:
            yield item


def test_a_leader_that_is_told_to_end_hands_over_at_once(api_server: ApiAlone, two: list[Process]) -> None:
    async def test() -> None:
        await until(lambda: any(one.leads for one in two), "a leader")
        (leader,) = (one for one in two if one.leads)
        (other,) = (one for one in two if one is not leader)
        await until(lambda: other.is_ready, "the other is ready")
        leader.end()
        assert leader.popen.returncode == 0
        await until(lambda: other.leads, "the other takes over", 5)

    asyncio.run(test())
