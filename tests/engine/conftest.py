"""What the tests of the data path share."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine.certificates import Authority, Credentials, spiffe
from tests.engine.harness import HBONE, Engine, Tables, listen, new_ip, port_of
from tests.engine.peers import Peer, tls_context

SERVER_ID = spiffe("server")
CLIENT_ID = spiffe("client")


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def server_credentials(authority: Authority) -> Credentials:
    return authority.issue(SERVER_ID)


@pytest.fixture(scope="session")
def client_credentials(authority: Authority) -> Credentials:
    return authority.issue(CLIENT_ID)


@dataclass
class ServerNode:
    """An engine with one pod that is reached on 15008, and the pod's application listener."""

    engine: Engine
    ip: str
    app: socket.socket
    credentials: Credentials
    peers: list[Peer] = field(default_factory=list)

    @property
    def port(self) -> int:
        return port_of(self.app)

    @property
    def authority(self) -> str:
        return f"{self.ip}:{self.port}"

    def dial(self, credentials: Credentials, **options: Any) -> Peer:
        peer = Peer.dial((self.ip, HBONE), tls_context(False, credentials, **options))
        self.peers.append(peer)
        return peer


def server_tables(ip: str) -> Tables:
    return Tables().workload(2, "server", SERVER_ID, ip)


def make_server(credentials: Credentials, **settings: int) -> ServerNode:
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
    node.app.close()
    node.engine.__exit__(None, None, None)


@pytest.fixture
def server(server_credentials: Credentials) -> Iterator[ServerNode]:
    node = make_server(server_credentials)
    yield node
    close_server(node)
