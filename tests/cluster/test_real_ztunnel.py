"""Istio's own ztunnel, the binary, driven by our controller: it syncs, gets its certificate, and talks to our ztunnel.

Runs where CULVERT_TEST_ZTUNNEL names the binary. In dedicated mode it stands in its pod's namespace; in shared mode
it stands in one of its own, and our agent's end of ZDS hands it the pod. An application reaches it by its SOCKS5 port
in the pod, so that nothing has to be redirected. It is built from its source, without what needs libraries of its own:
`cargo build --release --no-default-features --features tls-ring --bin ztunnel`.
"""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import subprocess
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from controller.app import Controller
from controller.config import ServeConfig
from daemonset.ztunnels import Wanted, Ztunnels
from mesh import zds
from mesh.channel import Credentials
from mesh.kube.resources import SECRETS
from mesh.netns import inside
from tests.cluster.alone import ApiAlone
from tests.cluster.callers import config
from tests.cluster.control_sides import ControlSide, EngineSink
from tests.cluster.mesh_objects import Objects
from tests.engine.conftest import SERVER_ID, server_tables
from tests.support.engine import Engine
from tests.support.machine import alone
from tests.support.sockets import listen, read_exactly
from tests.support.tables import Tables
from tests.unit.controller.nodes import Manifests, pod, running

BINARY = os.environ.get("CULVERT_TEST_ZTUNNEL", "")
pytestmark = [pytest.mark.slow, pytest.mark.root]

THEIRS, OURS, VIP, HOST, HOSTS = "10.99.0.1", "10.99.0.2", "10.99.0.3", "10.99.1.1", "10.99.1.2"
SOCKS, APP = 15080, 8080
DEDICATED, SHARED = "dedicated", "shared"


@pytest.fixture(autouse=True)
def binary(api_server: ApiAlone) -> None:
    """Where there is no API server either, that is the reason."""
    if not BINARY:
        pytest.skip("CULVERT_TEST_ZTUNNEL does not name a binary of Istio's ztunnel")


def sh(text: str) -> None:
    subprocess.run(text, shell=True, check=True, capture_output=True)


@dataclass(frozen=True, slots=True)
class Place:
    """The namespaces of two pods, joined, and the one of their ztunnel, which also reaches the host."""

    theirs: Path
    ours: Path
    ours_fd: int
    process: Path


@contextlib.contextmanager
def place(mode: str) -> Iterator[Place]:
    # Not two at once: the addresses are the machine's.
    with alone():
        yield from _made(mode)


def _made(mode: str) -> Iterator[Place]:
    a, b, n, cable = (f"cvz{part}{os.getpid()}" for part in ("-a-", "-b-", "-n-", ""))
    process = a if mode == DEDICATED else n
    try:
        sh(f"ip netns add {n}; ip -n {n} link set lo up")
        sh(f"ip netns add {a}; ip netns add {b}; ip -n {a} link set lo up; ip -n {b} link set lo up")
        sh(f"ip -n {a} link add e0 type veth peer name e0 netns {b}")
        sh(f"ip -n {a} addr add {THEIRS}/24 dev e0; ip -n {a} link set e0 up")
        sh(f"ip -n {b} addr add {OURS}/24 dev e0; ip -n {b} addr add {VIP}/32 dev lo; ip -n {b} link set e0 up")
        sh(f"ip link add {cable} type veth peer name h0 netns {process}; ip addr add {HOST}/30 dev {cable}")
        sh(f"ip link set {cable} up; ip -n {process} addr add {HOSTS}/30 dev h0; ip -n {process} link set h0 up")
        descriptor = os.open(f"/run/netns/{b}", os.O_RDONLY)
        try:
            folder = Path("/run/netns")
            yield Place(folder / a, folder / b, descriptor, folder / process)
        finally:
            os.close(descriptor)
    finally:
        for name in (a, b, n):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", cable], check=False, capture_output=True)


class Binary:
    """The process; `mode` has the settings by which its two modes differ."""

    def __init__(self, where: Place, folder: Path, port: int, mode: Mapping[str, str]) -> None:
        roots, control = str(folder / "roots.pem"), f"https://{HOST}:{port}"
        settings = {
            "XDS_ADDRESS": control,
            "CA_ADDRESS": control,
            "ALT_XDS_HOSTNAME": "localhost",
            "ALT_CA_HOSTNAME": "localhost",
            "XDS_ROOT_CA": roots,
            "CA_ROOT_CA": roots,
            "CLUSTER_ID": "Kubernetes",
            "INSTANCE_IP": HOSTS,
            "ENABLE_ORIG_SRC": "false",
            "UNSTABLE_ENABLE_SOCKS5": "true",
            "ZTUNNEL_WORKER_THREADS": "1",
            "IPV6_ENABLED": "false",
            "RUST_LOG": "info",
            "PATH": os.environ["PATH"],
            **mode,
        }
        self.log = folder / "ztunnel.log"
        self._where = where
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net={where.process}", BINARY], cwd=folder, env=settings, stdout=log, stderr=log
            )

    def dump(self) -> Any:
        def ask() -> Any:
            with urllib.request.urlopen("http://127.0.0.1:15000/config_dump", timeout=2) as answer:
                return json.load(answer)

        return inside(self._where.process, ask)

    def dial(self, ip: str, port: int) -> socket.socket:
        """An application's connection through it."""

        def connect() -> socket.socket:
            made = socket.create_connection(("127.0.0.1", SOCKS), 10)
            made.sendall(b"\x05\x01\x00")
            assert read_exactly(made, 2) == b"\x05\x00"
            made.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(ip) + struct.pack(">H", port))
            assert read_exactly(made, 10)[1] == 0
            return made

        return inside(self._where.theirs, connect)

    def end(self) -> None:
        self._process.kill()
        self._process.wait(10)


@dataclass
class Stage:
    where: Place
    binary: Binary
    engine: Engine


async def until(condition: Callable[[], bool], log: Path) -> None:
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    if await asyncio.to_thread(condition):
                        return
                await asyncio.sleep(0.1)
    except TimeoutError:
        said = await asyncio.to_thread(log.read_text)
        raise AssertionError(said[-4000:]) from None


@contextlib.asynccontextmanager
async def stage(server: ApiAlone, tmp_path: Path, mode: str) -> AsyncIterator[Stage]:
    objects = await Objects.make(server.api())
    node = await objects.node()
    caller = "client" if mode == DEDICATED else "ztunnel"
    tokens = {}
    for account, audience in ((caller, "istio-ca"), ("culvert-node", "culvert-ca")):
        await objects.account(account)
        uid = await objects.pod(f"{account}-x", account, node)
        tokens[account] = await objects.token(account, audience, (f"{account}-x", uid))
    settings = config(tmp_path, server, objects.namespace)
    who = (f"{objects.namespace}/{caller}",)
    callers = replace(
        settings.callers,
        token_audiences=("culvert-ca", "istio-ca"),
        reader_accounts=who if mode == DEDICATED else (),
        node_accounts=settings.callers.node_accounts if mode == DEDICATED else (*settings.callers.node_accounts, *who),
    )
    serve = ServeConfig(listen="0.0.0.0:0", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0")
    _announce(tmp_path, objects.namespace, node)
    with place(mode) as where, Engine() as engine:
        async with running(replace(settings, callers=callers, serve=serve)) as controller:
            (tmp_path / "token").write_text(tokens["culvert-node"])
            (tmp_path / "var/run/secrets/tokens").mkdir(parents=True)
            (tmp_path / "var/run/secrets/tokens/istio-token").write_text(tokens[caller])
            async with (
                our_side(controller, engine, tmp_path, await _roots(objects)) as sink,
                their_side(where, tmp_path, controller.port, _settings(mode, objects.namespace, node)) as binary,
            ):
                await until(lambda: len(binary.dump()["workloads"]) >= 2, binary.log)
                await until(lambda: bool(sink.last.chain), binary.log)
                yield Stage(where, binary, engine)


def _announce(folder: Path, namespace: str, node: str) -> None:
    """Both pods, captured: theirs is the caller's namespace's."""
    theirs, ours = pod("client", THEIRS, node, ns=namespace), pod("server", OURS, node, ns="default")
    for one in (theirs, ours):
        one["metadata"]["annotations"] = {"culvert.io/capture": "enabled"}
    Manifests(folder / "manifests").write("pods", theirs, ours)


def _settings(mode: str, namespace: str, node: str) -> dict[str, str]:
    common = {"PROXY_MODE": mode, "NODE_NAME": node, "POD_NAMESPACE": namespace}
    if mode == DEDICATED:
        own = {"PROXY_WORKLOAD_INFO": f"{namespace}/client/client", "POD_NAME": "client", "SERVICE_ACCOUNT": "client"}
    else:
        own = {"INPOD_UDS": "zds.sock", "POD_NAME": "ztunnel-x", "SERVICE_ACCOUNT": "ztunnel"}
    return {**common, **own}


@contextlib.asynccontextmanager
async def their_side(where: Place, folder: Path, port: int, settings: Mapping[str, str]) -> AsyncIterator[Binary]:
    async with Ztunnels(folder / "zds.sock") as agent:
        netns = os.open(where.theirs, os.O_RDONLY)
        binary = None
        try:
            add = zds.Add("uid-client", settings["POD_NAMESPACE"], "client", "client")
            agent.want(Wanted(add, netns))
            agent.open()
            binary = Binary(where, folder, port, settings)
            if settings["PROXY_MODE"] == SHARED:
                await until(lambda: agent.is_ready, binary.log)
                async with asyncio.timeout(10):
                    assert await agent.listen(Wanted(add, netns)) == ""
            yield binary
        finally:
            if binary is not None:
                await asyncio.to_thread(binary.end)
            os.close(netns)


async def _roots(objects: Objects) -> str:
    secret = await objects.api.get(SECRETS, "culvert-ca", objects.namespace)
    return base64.b64decode(secret["data"]["root-cert.pem"]).decode()


@contextlib.asynccontextmanager
async def our_side(controller: Controller, engine: Engine, folder: Path, roots: str) -> AsyncIterator[EngineSink]:
    (folder / "roots.pem").write_text(roots)
    sink = EngineSink(engine)
    shown = Credentials(folder / "none", folder / "token", roots=folder / "roots.pem")
    async with ControlSide(sink, SERVER_ID, shown, controller.port, 86_400).serving():
        yield sink


def echo(listener: socket.socket) -> None:
    """Serve one connection: what comes goes back, then the end."""

    def serve() -> None:
        listener.settimeout(20)
        made, _ = listener.accept()
        with made:
            while data := made.recv(65536):
                made.sendall(data)

    threading.Thread(target=serve, daemon=True).start()


def converse(made: socket.socket) -> None:
    """100 KiB there and back, half-close and end."""
    made.settimeout(20)
    data = os.urandom(100 * 1024)
    with made:
        threading.Thread(target=lambda: (made.sendall(data), made.shutdown(socket.SHUT_WR)), daemon=True).start()
        assert read_exactly(made, len(data)) == data
        assert made.recv(1) == b""


@pytest.mark.parametrize("mode", [DEDICATED, SHARED])
def test_its_application_reaches_ours(api_server: ApiAlone, tmp_path: Path, mode: str) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path, mode) as one:
            app, hbone = (inside(one.where.ours, lambda port=port: listen(OURS, port)) for port in (APP, 15008))
            one.engine.publish(server_tables(OURS))
            with app:
                assert not one.engine.add_pod(1, "server", SERVER_ID, hbone=hbone, netns=os.dup(one.where.ours_fd))
                echo(app)
                await asyncio.to_thread(lambda: converse(one.binary.dial(OURS, APP)))
            certificates = one.binary.dump()["certificates"]
            assert any("/sa/client" in entry["identity"] for entry in certificates)
            event = await asyncio.to_thread(one.engine.wait_closed)
            assert event.identity.endswith("/sa/client")

    asyncio.run(test())


@pytest.mark.parametrize("mode", [DEDICATED, SHARED])
def test_our_application_reaches_its_own(api_server: ApiAlone, tmp_path: Path, mode: str) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path, mode) as one:
            app = inside(one.where.theirs, lambda: listen(THEIRS, APP))
            capture = inside(one.where.ours, lambda: listen(VIP, 9090))
            identity = next(
                f"spiffe://cluster.local/ns/{entry['namespace']}/sa/client"
                for entry in one.binary.dump()["workloads"]
                if entry["name"] == "client"
            )
            tables = Tables().workload(1, "server", SERVER_ID, OURS).workload(2, "client", identity, THEIRS)
            one.engine.publish(tables.service(100, VIP, 9090, (2, APP)))
            with app:
                assert not one.engine.add_pod(1, "server", SERVER_ID, outbound=capture, netns=os.dup(one.where.ours_fd))
                echo(app)
                await asyncio.to_thread(
                    lambda: converse(inside(one.where.ours, lambda: socket.create_connection((VIP, 9090), 10)))
                )
            event = await asyncio.to_thread(one.engine.wait_closed)
            assert event.hbone[1] == 15008

    asyncio.run(test())
