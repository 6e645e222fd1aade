"""Peer, application and node act in one turn of a worker: whoever is heard first, all is served and paid back once."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine.conftest import (
    CLIENT_ID,
    SERVER_ID,
    ClientNode,
    ServerNode,
    client_tables,
    close_client,
    deny_all,
    make_client,
    server_tables,
)
from tests.support.engine import Engine
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Authority, Credential
from tests.support.sockets import HBONE, accept, connect, listen, new_ip, read_exactly, reset, until
from tests.support.stillness import one_moment
from tests.support.tables import Tables

MUCH = bytes(100_000)


def nothing_is_left(engine: Engine) -> bool:
    stats = engine.stats()
    return not (stats.connections_open or stats.tunnels_open or stats.bytes_buffered)


@dataclass
class Served:
    """A stream of a peer that is joined to the pod's application."""

    node: ServerNode
    peer: Hyper
    stream: int
    app: socket.socket
    authority: Authority

    def knock(self) -> None:
        self.node.open.append(connect((self.node.ip, HBONE)))


FAR: dict[str, Callable[[Served], object]] = {
    "asks": lambda at: at.peer.connect(at.node.authority),
    "writes": lambda at: at.peer.send(at.stream, MUCH[:60_000]),
    "ends": lambda at: at.peer.end(at.stream),
    "resets": lambda at: at.peer.reset(at.stream),
    "ends and resets": lambda at: (at.peer.end(at.stream), at.peer.reset(at.stream)),
    "knocks": Served.knock,
    "leaves": lambda at: at.peer.leave("TLS"),
    "dies": lambda at: at.peer.leave("RST"),
}
APPLICATION: dict[str, Callable[[socket.socket], object]] = {
    "writes": lambda app: app.send(MUCH, socket.MSG_DONTWAIT),
    "ends": lambda app: app.shutdown(socket.SHUT_WR),
    "closes": socket.socket.close,
    "resets": reset,
}


def ending(identity: str) -> dict[str, Callable[[Any], object]]:
    """What a node of either role does to the pod of this identity and to itself."""
    return {
        "renews the certificate": lambda at: at.node.engine.put_identity(identity, at.authority.issue(identity)),
        "trusts no more": lambda at: at.node.engine.put_identity(identity, Authority().issue(identity)),
        "drains the pod": lambda at: at.node.engine.remove_pod(1, drain=True),
        "removes the pod": lambda at: at.node.engine.remove_pod(1),
        "drains": lambda at: at.node.engine.drain(100),
    }


SERVER: dict[str, Callable[[Served], object]] = {
    "denies": lambda at: at.node.engine.publish(deny_all(server_tables(at.node.ip), at.node.ip)),
    "forgets the pod": lambda at: at.node.engine.publish(Tables()),
    **ending(SERVER_ID),
}


@pytest.fixture
def served(server: ServerNode, client_credential: Credential, authority: Authority) -> Iterator[Served]:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    yield Served(server, peer, stream, server.accept(), authority)
    peer.close()
    for app in server.open:
        app.close()
    until(lambda: nothing_is_left(server.engine))


def still_serves(at: Served, credentials: Credential) -> None:
    at.node.engine.publish(server_tables(at.node.ip))
    other = at.node.dial(credentials)
    stream = other.connect(at.node.authority)
    assert other.status(stream) == 200
    other.close()


@pytest.mark.parametrize("first", ["application", "peer"])
@pytest.mark.parametrize("app", APPLICATION)
@pytest.mark.parametrize("far", FAR)
def test_application_and_peer_of_a_server(
    served: Served, client_credential: Credential, far: str, app: str, first: str
) -> None:
    acts = [lambda: APPLICATION[app](served.app), lambda: FAR[far](served)]
    with one_moment():
        for act in acts if first == "application" else reversed(acts):
            act()
    still_serves(served, client_credential)


@pytest.mark.parametrize("node", SERVER)
@pytest.mark.parametrize(("far", "app"), [*((far, "") for far in FAR), *(("asks", app) for app in APPLICATION)])
def test_node_and_peer_of_a_server(
    served: Served, client_credential: Credential, far: str, app: str, node: str
) -> None:
    with one_moment():
        FAR[far](served)
        if app:
            APPLICATION[app](served.app)
        SERVER[node](served)  # last: this thread may wait in it for the worker
    if node in ("denies", "forgets the pod", "renews the certificate"):
        still_serves(served, client_credential)


class Asking:
    """A pod's application that has dialled a service, and the next hop as far as it has come."""

    def __init__(self, credentials: Credential, far: Credential, authority: Authority) -> None:
        self.ip, self.authority = new_ip(), authority
        self.listener = listen(self.ip, HBONE)
        self.context = tls_context(True, far)
        self.node: ClientNode = make_client(credentials, (self.ip, 80), max_streams_per_tunnel=2)
        self.near = self.node.connect()
        self.plain: socket.socket
        self.peer: Hyper
        self.stream = 0

    def come_to(self, state: str) -> None:
        self.plain = accept(self.listener)
        if state == "dials":
            return
        self.peer = Hyper(self.context.wrap_socket(self.plain, server_side=True), False)
        self.stream, _ = self.peer.accept_request()
        if state == "talks":
            self.peer.answer(self.stream, 200)
            self.peer.send(self.stream, b"up")
            assert read_exactly(self.near, 2) == b"up"

    def connect_more(self) -> None:
        for _ in range(3):
            self.node.connect()

    def tables(self) -> Tables:
        return client_tables(self.node.pod_ip, self.node.vip, self.node.port, (self.ip, 80))

    def close(self) -> None:
        for made in (self.near, *self.node.open):
            with contextlib.suppress(OSError):
                reset(made)
        self.listener.close()
        self.plain.close()
        if self.stream:
            self.peer.close()


NEXT_HOP: dict[str, Callable[[Asking], object]] = {
    "dials: closes": lambda at: at.plain.close(),
    "dials: resets": lambda at: reset(at.plain),
    "asks: 200": lambda at: at.peer.answer(at.stream, 200),
    "asks: 200 and an end": lambda at: at.peer.answer(at.stream, 200, end=True),
    "asks: 503": lambda at: at.peer.answer(at.stream, 503, end=True),
    "asks: refuses": lambda at: at.peer.reset(at.stream, 7),
    "asks: no longer": lambda at: (at.peer.h2.close_connection(last_stream_id=0), at.peer.flush()),
    "asks: leaves": lambda at: at.peer.leave("TLS"),
    "asks: dies": lambda at: at.peer.leave("RST"),
    "talks: writes": lambda at: at.peer.send(at.stream, MUCH[:60_000]),
    "talks: ends": lambda at: at.peer.end(at.stream),
    "talks: resets": lambda at: at.peer.reset(at.stream),
    "talks: ends and resets": lambda at: (at.peer.end(at.stream), at.peer.reset(at.stream)),
    "talks: leaves": lambda at: at.peer.leave("TLS"),
    "talks: dies": lambda at: at.peer.leave("RST"),
}
NEAR: dict[str, Callable[[Asking], object]] = {
    "connects": Asking.connect_more,
    **{how: lambda at, act=act: act(at.near) for how, act in APPLICATION.items()},
}
CLIENT: dict[str, Callable[[Asking], object]] = {
    "publishes": lambda at: at.node.engine.publish(at.tables()),
    "forgets everything": lambda at: at.node.engine.publish(Tables()),
    **ending(CLIENT_ID),
}


@pytest.fixture
def asking(client_credential: Credential, server_credential: Credential, authority: Authority) -> Iterator[Asking]:
    made = Asking(client_credential, server_credential, authority)
    yield made
    made.close()
    until(lambda: nothing_is_left(made.node.engine))
    close_client(made.node)


@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("far", NEXT_HOP)
def test_application_and_peer_of_a_client(asking: Asking, far: str, near: str) -> None:
    asking.come_to(far.partition(":")[0])
    with one_moment():
        NEAR[near](asking)
        NEXT_HOP[far](asking)


@pytest.mark.parametrize("node", CLIENT)
@pytest.mark.parametrize("far", NEXT_HOP)
def test_node_application_and_peer_of_a_client(asking: Asking, far: str, node: str) -> None:
    asking.come_to(far.partition(":")[0])
    with one_moment():
        asking.connect_more()
        NEXT_HOP[far](asking)
        CLIENT[node](asking)  # last: this thread may wait in it for the worker
