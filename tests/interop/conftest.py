"""What the interoperation tests share: a pod of ours behind 15008, and a pod of ours that dials a peer's 15008."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.interop.node import Node
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import HBONE, connect, listen, new_ip, port_of


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def client_credential(authority: Authority) -> Credential:
    return authority.issue(spiffe("client"))


@pytest.fixture(scope="session")
def server_credential(authority: Authority) -> Credential:
    return authority.issue(spiffe("server"))


@dataclass
class OurServer:
    """A pod `server` of ours with an application that listens; a peer dials its 15008."""

    node: Node
    ip: str
    app: socket.socket
    shown: Credential  # by peers that do not say otherwise
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def authority(self) -> str:
        return f"{self.ip}:{port_of(self.app)}"

    def peer(self, shown: Credential | None = None, source: str | None = None, **options: Any) -> Hyper:
        """A client over h2."""
        context = tls_context(False, shown or self.shown)
        return self.closing.enter_context(Hyper.dial(self.ip, context, source, **options))


@contextmanager
def our_server(shown: Credential, peers_show: Credential, **settings: int) -> Iterator[OurServer]:
    ip = new_ip()
    with Node(**settings) as node, listen(ip) as app, ExitStack() as closing:
        node.identity("server", shown)
        node.workload("server", ip, here=True)
        node.pod("server", ip)
        yield OurServer(node, ip, app, peers_show, closing)


@pytest.fixture
def server(server_credential: Credential, client_credential: Credential) -> Iterator[OurServer]:
    with our_server(server_credential, client_credential) as made:
        yield made


@dataclass
class OurClient:
    """A pod `client` of ours whose captured connections to workload `server` reach a peer's 15008."""

    node: Node
    ip: str  # of the client
    peer_ip: str  # of the workload `server`
    captured: int  # dial peer_ip at this port to be captured
    listener: socket.socket  # the peer's 15008
    shown: Credential  # by the peer
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def authority(self) -> str:
        return f"{self.peer_ip}:{self.captured}"

    def app(self) -> socket.socket:
        """An application connects."""
        return self.closing.enter_context(connect((self.peer_ip, self.captured)))

    def accept(self, shown: Credential | None = None, **options: Any) -> Hyper:
        """The peer takes a tunnel, over h2."""
        context = tls_context(True, shown or self.shown)
        return self.closing.enter_context(Hyper.accept(self.listener, context, **options))

    def opened(self, **options: Any) -> tuple[socket.socket, Hyper, int]:
        """An application, the peer's connection and the stream between them, answered with 200."""
        app = self.app()
        peer = self.accept(**options)
        stream, _ = peer.accept_request()
        peer.answer(stream, 200)
        return app, peer, stream

    def next_stream(self, peer: Hyper) -> tuple[socket.socket, int]:
        """Another application, on a connection that is there."""
        app = self.app()
        stream, _ = peer.accept_request()
        peer.answer(stream, 200)
        return app, stream


@contextmanager
def our_client(shown: Credential, peer_shows: Credential, **settings: int) -> Iterator[OurClient]:
    ip, peer_ip = new_ip(), new_ip()
    with Node(**settings) as node, listen(peer_ip, HBONE) as listener, ExitStack() as closing:
        node.identity("client", shown)
        node.workload("client", ip, here=True)
        node.workload("server", peer_ip)
        captured = node.pod("client", ip)
        yield OurClient(node, ip, peer_ip, captured, listener, peer_shows, closing)


@pytest.fixture
def client(client_credential: Credential, server_credential: Credential) -> Iterator[OurClient]:
    with our_client(client_credential, server_credential) as made:
        yield made
