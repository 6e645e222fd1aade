"""What the tests of the data path share."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h2.events
import pytest

from tests.support.engine import Engine
from tests.support.hyper import Hyper, tls_context
from tests.support.namespace import namespace
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import HBONE, accept, connect, listen, new_ip, port_of
from tests.support.tables import Tables
from ztunnel.model import Policy
from ztunnel.program import encode

SERVER_ID = spiffe("server")
CLIENT_ID = spiffe("client")


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def server_credential(authority: Authority) -> Credential:
    return authority.issue(SERVER_ID)


@pytest.fixture(scope="session")
def client_credential(authority: Authority) -> Credential:
    return authority.issue(CLIENT_ID)


@dataclass
class ServerNode:
    """An engine with one pod that is reached on 15008, and the pod's application listener."""

    engine: Engine
    ip: str
    app: socket.socket
    credentials: Credential
    peers: list[Hyper] = field(default_factory=list)
    open: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        return port_of(self.app)

    @property
    def authority(self) -> str:
        return f"{self.ip}:{self.port}"

    def accept(self) -> socket.socket:
        """The application's end of the next connection."""
        app = accept(self.app)
        self.open.append(app)
        return app

    def dial(self, credentials: Credential, **options: Any) -> Hyper:
        peer = Hyper.dial(self.ip, tls_context(False, credentials, **options))
        self.peers.append(peer)
        return peer


def server_tables(ip: str) -> Tables:
    return Tables().workload(2, "server", SERVER_ID, ip)


def deny_all(tables: Tables, ip: str) -> Tables:
    """An ALLOW policy without rules matches nobody, so everybody is refused."""
    program = encode(Policy(local_name="none", namespace="default"))
    return tables.policy(50, program).workload(2, "server", SERVER_ID, ip, policies=(50,))


def make_server(credentials: Credential, **settings: int) -> ServerNode:
    ip = new_ip()
    engine = Engine(**settings)
    node = ServerNode(engine, ip, listen(ip), credentials)
    assert not engine.put_identity(SERVER_ID, credentials)
    engine.publish(server_tables(ip))
    assert not engine.add_pod(1, "server", SERVER_ID, hbone=listen(ip, HBONE))
    return node


def close_server(node: ServerNode) -> None:
    for peer in node.peers:
        peer.close()
    for app in node.open:
        app.close()
    node.app.close()
    node.engine.__exit__(None, None, None)


@pytest.fixture
def server(server_credential: Credential) -> Iterator[ServerNode]:
    node = make_server(server_credential)
    yield node
    close_server(node)


@pytest.fixture
def make_node(server_credential: Credential) -> Iterator[Callable[..., ServerNode]]:
    """Servers with settings of one's own."""
    made: list[ServerNode] = []

    def make(**settings: int) -> ServerNode:
        made.append(make_server(server_credential, **settings))
        return made[-1]

    yield make
    for node in made:
        close_server(node)


@dataclass
class ClientNode:
    """An engine with one pod whose application dials a service: a listener on the VIP stands for the capture."""

    engine: Engine
    vip: str
    port: int
    pod_ip: str
    open: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return self.vip, self.port

    def connect(self) -> socket.socket:
        made = connect((self.vip, self.port))
        self.open.append(made)
        return made


def client_tables(pod_ip: str, vip: str, port: int, *targets: tuple[str, int], hbone: bool = True) -> Tables:
    """Workload 1 dials service 100; targets are (address, port), workloads 10, 11, …"""
    tables = Tables().workload(1, "client", CLIENT_ID, pod_ip)
    for i, (ip, _) in enumerate(targets):
        tables.workload(10 + i, f"server{i}", SERVER_ID, ip, hbone=hbone)
    endpoints = [(10 + i, target) for i, (_, target) in enumerate(targets)]
    return tables.service(100, vip, port, *endpoints)


def make_client(
    credentials: Credential | None, *targets: tuple[str, int], hbone: bool = True, **settings: Any
) -> ClientNode:
    engine = Engine(**settings)
    capture = listen(new_ip())
    vip, port, pod_ip = capture.getsockname()[0], port_of(capture), new_ip()
    if credentials:
        assert not engine.put_identity(CLIENT_ID, credentials)
    engine.publish(client_tables(pod_ip, vip, port, *targets, hbone=hbone))
    assert not engine.add_pod(1, "client", CLIENT_ID, outbound=capture)
    return ClientNode(engine, vip, port, pod_ip)


def close_client(node: ClientNode) -> None:
    for made in node.open:
        made.close()
    node.engine.__exit__(None, None, None)


@dataclass
class Pair:
    """Two engines back to back: an application's connection crosses both."""

    client: ClientNode
    server: ServerNode

    def open(self) -> tuple[socket.socket, socket.socket]:
        """Both applications' ends of a new connection."""
        near = self.client.connect()
        return near, self.server.accept()


@pytest.fixture
def make_pair(server_credential: Credential, client_credential: Credential) -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(client: dict[str, Any] | None = None, server: dict[str, int] | None = None) -> Pair:
        node = make_server(server_credential, **(server or {}))
        pair = Pair(make_client(client_credential, (node.ip, node.port), **(client or {})), node)
        made.append(pair)
        return pair

    yield make
    for pair in made:
        close_client(pair.client)
        close_server(pair.server)


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


class FarEnd:
    """python-hyper's h2 on a 15008 of its own, and a client engine that dials it."""

    def __init__(self, client: Credential, server: Credential, **settings: Any) -> None:
        self.ip = new_ip()
        self.listener = listen(self.ip, HBONE)
        self.context = tls_context(True, server)
        self.node: ClientNode = make_client(client, (self.ip, 80), **settings)
        self.peers: list[Hyper] = []

    def accept(self, **options: Any) -> Hyper:
        peer = Hyper.accept(self.listener, self.context, **options)
        self.peers.append(peer)
        return peer

    def request(self) -> tuple[socket.socket, Hyper, h2.events.RequestReceived]:
        """A new connection up to its CONNECT on a new tunnel."""
        near = self.node.connect()
        peer = self.accept()
        return near, peer, peer.wait(h2.events.RequestReceived)

    def answered(self) -> tuple[socket.socket, Hyper, int]:
        near, peer, request = self.request()
        peer.h2.send_headers(request.stream_id, [(":status", "200")])
        peer.flush()
        return near, peer, request.stream_id

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.listener.close()
        close_client(self.node)


@pytest.fixture
def make_far(client_credential: Credential, server_credential: Credential) -> Iterator[Callable[..., FarEnd]]:
    made: list[FarEnd] = []

    def make(server: Credential | None = None, **settings: int) -> FarEnd:
        made.append(FarEnd(client_credential, server or server_credential, **settings))
        return made[-1]

    yield make
    for far in made:
        far.close()


@pytest.fixture
def far(make_far: Callable[..., FarEnd]) -> FarEnd:
    return make_far()


@contextlib.contextmanager
def plain_application(engine: Engine, ip: str) -> Iterator[socket.socket]:
    """The listening application of a pod that takes plain connections on 15006, in a namespace of its own."""
    with namespace() as inside:
        capture = listen(ip)
        port = port_of(capture)
        with inside(lambda: listen(ip, port)) as app:
            engine.publish(server_tables(ip))
            netns = os.dup(inside.fd)  # type: ignore[attr-defined]
            assert not engine.add_pod(1, "server", SERVER_ID, inbound=capture, netns=netns)
            yield app
