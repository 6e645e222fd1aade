"""Our engine fed by Istio's real control plane: what it announces, signs and forbids decides real connections.

Runs where `test_real_istiod.py` runs. The pods are two namespaces with an address each; nothing of the machine is used.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.kube.resources import AUTHORIZATION_POLICIES, SERVICES
from mesh.netns import inside
from tests.cluster.istiod import NAMESPACE, Stage
from tests.cluster.istiod_shop import NODE, Scene, scene
from tests.cluster.objects import until
from tests.support.border import MODULE
from tests.support.engine import Engine
from tests.support.pki import Credential
from tests.support.sockets import listen, read_exactly
from ztunnel.change import Change
from ztunnel.compile import Compiler

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(180)]

APP, HBONE, PORT = 8080, 15008, 80


class Compiled:
    """Tables as the engine of tests takes them."""

    def __init__(self, raw: Any) -> None:
        self.take = lambda: raw


def sh(text: str) -> None:
    subprocess.run(text, shell=True, check=True, capture_output=True)


@contextlib.contextmanager
def pods(client: str, server: str, vip: str) -> Iterator[tuple[Path, Path]]:
    """Their namespaces, joined; the client's has the service's address too, where its capture listens."""
    a, b = (f"cvi-{part}-{os.getpid()}" for part in "ab")
    try:
        sh(f"ip netns add {a}; ip netns add {b}; ip -n {a} link set lo up; ip -n {b} link set lo up")
        sh(f"ip -n {a} link add e0 type veth peer name e0 netns {b}; ip -n {a} addr add {vip}/32 dev lo")
        for name, address in ((a, client), (b, server)):
            sh(f"ip -n {name} addr add {address}/16 dev e0; ip -n {name} link set e0 up")
        yield Path("/run/netns") / a, Path("/run/netns") / b
    finally:
        for name in (a, b):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def fed(one: Scene) -> Iterator[Engine]:
    """An engine to which is published what is there and what comes."""
    compiler = Compiler(one.ztunnel.store, MODULE)

    def publish(change: Change) -> None:
        engine.publish(Compiled(compiler.apply(change)))  # type: ignore[arg-type]  # as good as those of tests

    with Engine() as engine:
        publish(one.ztunnel.store.everything())
        one.ztunnel.on_change = publish
        try:
            yield engine
        finally:
            one.ztunnel.on_change = lambda _: None


async def certify(one: Scene, engine: Engine, account: str) -> str:
    """Have a certificate for an account; its identity."""
    identity = str(one.ztunnel.certificate(one.shop.namespace, account))
    await until(lambda: identity in one.ztunnel.held.by_identity, f"a certificate for {account}")
    assert not engine.put_identity(identity, Credential(*one.ztunnel.held.by_identity[identity]))
    return identity


def serve(listener: socket.socket) -> None:
    """Echo the first five bytes of every connection."""

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                made, _ = listener.accept()
                with made, contextlib.suppress(OSError, AssertionError):
                    made.settimeout(10)
                    made.sendall(read_exactly(made, 5))

    listener.settimeout(None)
    threading.Thread(target=run, daemon=True).start()


def reaches(netns: Path, vip: str) -> bool:
    def ask() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((vip, PORT), 10) as made:
            made.sendall(b"hello")
            return made.recv(5) == b"hello"
        return False

    return inside(netns, ask)


def test_its_announcements_certificates_and_policies_decide_connections(istio: Stage) -> None:
    async def test() -> None:
        async with scene(istio) as one:
            shop, store = one.shop, one.ztunnel.store
            client = store.workload(store.workload_number(shop.uid("client")))
            assert client is not None
            server = await shop.pod("solo", NODE, app="solo")
            spec = {"selector": {"app": "solo"}, "ports": [{"name": "tcp", "port": PORT, "targetPort": APP}]}
            await shop.put("v1", "Service", "solo", spec)
            vip = (await one.api.get(SERVICES, "solo", shop.namespace))["spec"]["clusterIP"]
            name = f"{shop.namespace}/solo.{shop.namespace}.svc.cluster.local"
            await until(lambda: bool(store.endpoints_of_port(store.service_number(name), PORT)), "the service")
            address = socket.inet_ntoa(client.addresses[0][12:])
            with pods(address, server, vip) as (theirs, ours), fed(one) as engine:
                identities = {account: await certify(one, engine, account) for account in ("client", "solo")}
                capture = inside(theirs, lambda: listen(vip, PORT))
                app, hbone = (inside(ours, lambda port=port: listen(server, port)) for port in (APP, HBONE))
                with app:
                    serve(app)
                    fds = [os.open(path, os.O_RDONLY) for path in (theirs, ours)]
                    uid = shop.uid("client")
                    assert not engine.add_pod(1, uid, identities["client"], outbound=capture, netns=fds[0])
                    assert not engine.add_pod(2, shop.uid("solo"), identities["solo"], hbone=hbone, netns=fds[1])
                    await _decide(one, engine, theirs, vip, identities["client"])

    asyncio.run(test())


async def _decide(one: Scene, engine: Engine, netns: Path, vip: str, identity: str) -> None:
    async def is_reached() -> bool:
        return await asyncio.to_thread(reaches, netns, vip)

    async def is_refused() -> bool:
        return not await is_reached()

    assert await is_reached()
    ends = [await asyncio.to_thread(engine.wait_closed) for _ in range(2)]
    assert identity in {event.identity for event in ends}
    assert {event.hbone[1] for event in ends} >= {HBONE}
    caller = {"source": {"principals": [identity.removeprefix("spiffe://")]}}
    await one.shop.put_policy("deny", {"action": "DENY", "rules": [{"from": [caller]}]})
    await until(is_refused, "the client is denied")
    await one.api.delete(AUTHORIZATION_POLICIES, "deny", one.shop.namespace)
    await until(is_reached, "nothing is denied")
    await one.shop.put_policy("strict", {"mtls": {"mode": "STRICT"}}, "PeerAuthentication")
    strict = f"Authorization {NAMESPACE}/istio_converted_static_strict"
    await until(lambda: strict in one.ztunnel.messages, "STRICT")
    assert await is_reached()
