"""Roots and intermediates change under traffic: two replicas, two nodes, a real API server, no failed connection."""

import asyncio
import base64
import contextlib
import datetime
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.app import Controller
from controller.ca.authority import Authority, Lifetimes
from controller.ca.credential import issue_credential
from controller.ca.distribution import pem
from controller.ca.issuer import Issuer
from controller.config import AuthorityConfig, CallersConfig, Config, ElectionConfig, ServeConfig, SourceConfig
from mesh.aio import Background
from mesh.channel import Credentials
from mesh.kube.api import Api
from mesh.kube.errors import NotFound
from mesh.kube.resources import CONFIG_MAPS, SECRETS
from tests.cluster.alone import ApiAlone
from tests.cluster.control_sides import ControlSide, EngineSink
from tests.cluster.kube.api_server import free_ports
from tests.cluster.mesh_objects import Objects
from tests.engine.conftest import CLIENT_ID, SERVER_ID, client_tables, server_tables
from tests.support.engine import Engine
from tests.support.mounted import mount
from tests.support.sockets import HBONE, listen, new_ip, port_of, read_exactly
from tests.support.waiting import until
from tests.unit.controller.ca.hierarchy import files, intermediate, root
from tests.unit.controller.nodes import Manifests, pod, running
from ztunnel.identity.svid import leads_to, now_utc, read_roots

pytestmark = pytest.mark.slow

LEAF_S = 5


def config(tmp_path: Path, server: ApiAlone, namespace: str, replica: str) -> Config:
    return Config(
        state=tmp_path / replica,
        drain_s=0.2,
        source=SourceConfig(manifests=tmp_path / "manifests", kubeconfig=server.kubeconfig),
        serve=ServeConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0"),
        callers=CallersConfig(auth="tokens", node_accounts=(f"{namespace}/culvert-node",)),
        authority=AuthorityConfig(
            ca="kubernetes",
            ca_namespace=namespace,
            leaf_ttl_s=LEAF_S,
            longest_leaf_ttl_s=LEAF_S,
            root_distribution_s=2.0,
            root_retirement_s=LEAF_S + 1.0,
        ),
    )


class Traffic(threading.Thread):
    """One connection after another through both engines, each over a tunnel of its own."""

    def __init__(self, address: tuple[str, int], app: Any) -> None:
        super().__init__(name="traffic")
        self._address = address
        self._app = app
        self._over = threading.Event()
        self.done = 0
        self.faults: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.05):
            try:
                with socket.create_connection(self._address, 5) as near:
                    near.sendall(b"hello")
                    self._app.settimeout(5)
                    far, _ = self._app.accept()
                    with far:
                        far.settimeout(5)
                        assert read_exactly(far, 5) == b"hello"
                self.done += 1
            except (OSError, AssertionError) as error:
                self.faults.append(f"{time.strftime('%X')} {error!r}")

    def end(self) -> None:
        self._over.set()
        self.join()


class Mesh:
    """What the test looks at and turns."""

    def __init__(self, api: Api, namespace: str, nodes: list[ControlSide], traffic: Traffic) -> None:
        self.api, self.namespace, self.nodes, self.traffic = api, namespace, nodes, traffic

    async def ask_for_a_new_root(self, word: str) -> None:
        patch = {"metadata": {"annotations": {"culvert.io/rotate-root": word}}}
        await self.api.merge_patch(SECRETS, "culvert-ca", patch, self.namespace)

    async def plug_in(self, issuer: Issuer, *, is_new: bool) -> None:
        data = {name: base64.b64encode(content).decode() for name, content in files(issuer).items()}
        metadata = {"name": "cacerts", "namespace": self.namespace}
        document = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
        await (self.api.create if is_new else self.api.replace)(SECRETS, document, self.namespace)

    async def roots(self) -> str:
        found = await self.api.get(CONFIG_MAPS, "culvert-ca-root", self.namespace)
        assert found["data"]["roots.pem"] == found["data"]["root-cert.pem"]
        return str(found["data"]["roots.pem"])

    async def phase(self) -> str:
        try:
            found = await self.api.get(CONFIG_MAPS, "culvert-ca-root", self.namespace)
        except NotFound:
            return ""
        return str(found["metadata"]["annotations"]["culvert.io/ca-phase"])

    async def phases(self, *wanted: str) -> None:
        """Wait for these phases, one after the other."""
        for phase in wanted:
            async with asyncio.timeout(30):
                while await self.phase() != phase:
                    await asyncio.sleep(0.1)

    def failures(self) -> list[object]:
        """What the engines say of connections that did not come to be."""
        for node in self.nodes:
            node.sink.engine.poll_events(0)
        return [event for node in self.nodes for event in node.sink.engine.seen if not event.opened]

    async def settled(self, roots: str) -> None:
        """Every node trusts these roots and no others."""
        async with asyncio.timeout(20):
            while any(node.sink.last.roots != roots for node in self.nodes):
                await asyncio.sleep(0.1)


async def keep_mounted(api: Api, namespace: str, folder: Path) -> None:
    last: Mapping[str, str] = {}
    while True:
        data = (await api.get(CONFIG_MAPS, "culvert-ca-root", namespace))["data"]
        if data != last:
            mount(folder, data)
            last = data
        await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def mesh(server: ApiAlone, tmp_path: Path) -> AsyncIterator[Mesh]:
    api = server.api()
    objects = await Objects.make(api)
    await objects.account("culvert-node")
    (tmp_path / "manifests").mkdir()
    mounted = tmp_path / "roots"
    pods = []
    credentials = []
    for account in ("client", "server"):
        node = await objects.node()
        name = f"culvert-node-{account}"
        token = tmp_path / f"{account}.token"
        uid = await objects.pod(name, "culvert-node", node)
        token.write_text(await objects.token("culvert-node", pod=(name, uid)))
        pods.append(pod(account, f"10.0.0.{len(pods) + 1}", node, ns="default"))
        credentials.append(Credentials(tmp_path / "none", token, roots=mounted / "roots.pem"))
    Manifests(tmp_path / "manifests").write("pods", *pods)
    async with contextlib.AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(running(config(tmp_path, server, objects.namespace, name)))
            for name in ("one", "two")
        ]
        tasks = await stack.enter_async_context(Background())
        tasks.start(keep_mounted(api, objects.namespace, mounted), "kubelet")
        nodes, traffic = engines(stack, replicas, credentials)
        for node in nodes:
            await stack.enter_async_context(node.serving())
        async with asyncio.timeout(20):
            while not all(node.sink.last.roots for node in nodes):
                await asyncio.sleep(0.05)
        traffic.start()
        stack.callback(traffic.end)
        yield Mesh(api, objects.namespace, nodes, traffic)


def engines(
    stack: contextlib.AsyncExitStack, replicas: list[Controller], credentials: list[Credentials]
) -> tuple[list[ControlSide], Traffic]:
    client, far = (EngineSink(stack.enter_context(Engine(pool_idle_ms=10))) for _ in range(2))
    ip, capture = new_ip(), listen(new_ip())
    app = stack.enter_context(listen(ip))
    vip, port = capture.getsockname()[0], port_of(capture)
    far.engine.publish(server_tables(ip))
    assert not far.engine.add_pod(1, "server", SERVER_ID, hbone=listen(ip, HBONE))
    client.engine.publish(client_tables(new_ip(), vip, port, (ip, port_of(app))))
    assert not client.engine.add_pod(1, "client", CLIENT_ID, outbound=capture)
    nodes = [
        ControlSide(sink, identity, shown, replica.port, LEAF_S)
        for sink, identity, shown, replica in zip(
            (client, far), (CLIENT_ID, SERVER_ID), credentials, replicas, strict=True
        )
    ]
    return nodes, Traffic((vip, port), app)


def test_root_and_intermediate_are_replaced_without_a_failed_connection(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with mesh(api_server, tmp_path) as one:
            first = await one.roots()
            await one.ask_for_a_new_root("2026")
            await one.phases("distributing", "retiring", "steady")
            second = await one.roots()
            assert first not in second
            assert second.count("BEGIN") == 1
            await one.settled(second)

            above = root(now_utc())
            await one.plug_in(intermediate(above, now=now_utc()), is_new=True)
            await one.phases("distributing", "retiring", "steady")
            third = await one.roots()
            assert third == above.roots_pem.decode()
            await one.settled(third)

            renewed = intermediate(above, now=now_utc())
            await one.plug_in(renewed, is_new=False)
            shown = files(renewed)["cert-chain.pem"].decode()
            async with asyncio.timeout(20):
                while not all(node.sink.last.chain.endswith(shown) for node in one.nodes):
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            done, tunnels = one.traffic.done, one.nodes[0].sink.engine.stats().tunnels_opened[0]
            assert not one.traffic.faults, one.failures()
            assert done > 200
            assert tunnels > 100

    asyncio.run(test())


def issuer_files(folder: Path, issuer: Issuer, *roots: Issuer) -> None:
    """What an operator puts into `--ca-dir`: who signs, and all that are to be trusted."""
    folder.mkdir(exist_ok=True)
    trusted = b"".join(one.roots_pem for one in roots)
    for name, content in {**files(issuer), "root-cert.pem": trusted}.items():
        (folder / name).write_bytes(content)


def test_a_standalone_controllers_root_is_replaced_by_three_restarts(tmp_path: Path) -> None:
    """As docs/certificates.md tells it: both roots, then the other issuer, then the old root away."""
    (tmp_path / "manifests").mkdir()
    (port,) = free_ports(1)
    old, new = root(now_utc()), root(now_utc())
    Manifests(tmp_path / "manifests").write(
        "pods",
        *(pod(name, f"10.0.0.{n}", f"node-{name}", ns="default") for n, name in enumerate(("client", "server"), 1)),
    )
    settings = Config(
        state=tmp_path / "state",
        drain_s=0.2,
        source=SourceConfig(manifests=tmp_path / "manifests"),
        serve=ServeConfig(listen=f"127.0.0.1:{port}", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0"),
        authority=AuthorityConfig(ca_dir=tmp_path / "ca", leaf_ttl_s=LEAF_S, longest_leaf_ttl_s=LEAF_S),
    )
    folders = {name: tmp_path / f"node-{name}" for name in ("client", "server")}

    def credentials_of_nodes(issuer: Issuer) -> None:
        authority = Authority(issuer, Lifetimes(), now_utc)
        for name, folder in folders.items():
            issue_credential(authority, "cluster.local", f"node-{name}", folder, datetime.timedelta(hours=1))

    @contextlib.asynccontextmanager
    async def phase(issuer: Issuer, *roots: Issuer) -> AsyncIterator[Controller]:
        issuer_files(tmp_path / "ca", issuer, *roots)
        async with running(settings) as controller:
            assert controller.port == port
            yield controller

    async def settled(nodes: list[ControlSide], issuer: Issuer, *roots: Issuer) -> None:
        """Every node shows a leaf of this issuer, and trusts these roots."""

        def is_so(node: ControlSide) -> bool:
            held = node.sink.last
            trusted = set(read_roots(held.roots)) if held.roots else set()
            return trusted == {one.certificate for one in roots} and leads_to(held.chain, issuer.roots_pem.decode())

        await until(lambda: all(map(is_so, nodes)), 30)

    async def test() -> None:
        credentials_of_nodes(old)
        async with contextlib.AsyncExitStack() as stack:
            async with phase(old, old) as controller:
                shown = [Credentials(folder) for folder in folders.values()]
                nodes, traffic = engines(stack, [controller, controller], shown)
                for node in nodes:
                    await stack.enter_async_context(node.serving())
                await settled(nodes, old, old)
                traffic.start()
                stack.callback(traffic.end)
            async with phase(old, old, new) as controller:
                await settled(nodes, old, old, new)
                credentials_of_nodes(replace(old, roots=(old.certificate, new.certificate)))
            async with phase(new, old, new) as controller:
                await settled(nodes, new, old, new)
                credentials_of_nodes(replace(new, roots=(old.certificate, new.certificate)))
                await asyncio.sleep(LEAF_S)
            async with phase(new, new) as controller:
                await settled(nodes, new, new)
                await asyncio.sleep(1)
            assert not traffic.faults, [node.sink.engine.seen for node in nodes]
            assert traffic.done > 100

    asyncio.run(test())


def leads(controller: Controller) -> bool:
    return controller.cluster is not None and controller.cluster.leadership.is_leader


def test_who_leads_next_finishes_a_rotation(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        api = api_server.api()
        namespace = (await Objects.make(api)).namespace
        (tmp_path / "manifests").mkdir()
        (tmp_path / "roots").mkdir()

        def replica(name: str) -> Config:
            settings = config(tmp_path, api_server, namespace, name)
            source = replace(settings.source, source="kubernetes", manifests=None)
            return replace(settings, source=source, election=ElectionConfig(elect=True, lease_namespace=namespace))

        one = Mesh(api, namespace, [], Traffic(("", 0), None))
        async with contextlib.AsyncExitStack() as others:
            first = await others.enter_async_context(running(replica("one")))
            await until(lambda: leads(first))
            async with running(replica("two")) as second:
                await one.phases("steady")
                assert not leads(second)
                before = await one.roots()
                await one.ask_for_a_new_root("2026")
                await one.phases("distributing")
                await others.aclose()
                await one.phases("retiring", "steady")
                assert leads(second)
                assert before not in await one.roots()
                assert pem(second.authority.roots) == await one.roots()

    asyncio.run(test())
