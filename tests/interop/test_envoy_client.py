"""Envoy as HBONE client of our 15008: a TCP proxy of Envoy whose connections become CONNECT streams."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.reasons import Reason
from tests.interop.conftest import OurServer, our_server
from tests.interop.node import Node
from tests.support import envoy
from tests.support.bulk import CHUNKS, assert_bulk, echo_server
from tests.support.pki import Credential
from tests.support.sockets import (
    HBONE,
    accept,
    connect,
    is_reset,
    listen,
    new_ip,
    port_of,
    read_exactly,
    read_to_end,
    until,
)
from ztunnel.events import EventKind
from ztunnel.events import Path as Carried


class EnvoyBefore:
    """Our server with an Envoy before it; `dial` is what an application of Envoy's pod does."""

    def __init__(self, server: OurServer, running: envoy.Envoy, ip: str, port: int) -> None:
        self.server, self.envoy = server, running
        self._address = ip, port

    @property
    def node(self) -> Node:
        return self.server.node

    def dial(self) -> socket.socket:
        return self.server.closing.enter_context(connect(self._address))

    def accept(self) -> socket.socket:
        return self.server.closing.enter_context(accept(self.server.app))


@pytest.fixture
def before(server_credential: Credential, client_credential: Credential, tmp_path: Path) -> Iterator[EnvoyBefore]:
    with (
        our_server(server_credential, client_credential) as server,
        envoy_before(server, port_of(server.app), tmp_path) as made,
    ):
        yield made


@contextmanager
def envoy_before(server: OurServer, port: int, folder: Path) -> Iterator[EnvoyBefore]:
    """Envoy with the peers' credential, asking for a port of the pod."""
    ip = new_ip()
    with listen(ip) as free:
        at = port_of(free)
    config = envoy.client_config(
        envoy.Address(ip, at), envoy.Address(server.ip, HBONE), envoy.Address(server.ip, port), server.shown
    )
    with envoy.running(config, folder, "client") as running:
        yield EnvoyBefore(server, running, ip, at)


def test_echo_and_half_close_both_ways(before: EnvoyBefore) -> None:
    client = before.dial()
    client.sendall(b"question")
    app = before.accept()
    assert read_exactly(app, 8) == b"question"
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(app) == b""
    app.sendall(b"answer after the end of the question")
    app.close()
    assert read_to_end(client) == b"answer after the end of the question"
    reason, event = before.node.closed()
    assert (reason, event.path, event.status) == (Reason.OK, Carried.HBONE, 200)
    assert event.identity == "spiffe://cluster.local/ns/default/sa/client"


def test_half_close_from_the_application_first(before: EnvoyBefore) -> None:
    client = before.dial()
    client.sendall(b"?")
    app = before.accept()
    app.sendall(b"greeting")
    app.shutdown(socket.SHUT_WR)
    assert read_to_end(client) == b"greeting"
    client.sendall(b"x" * 100_000)
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(app) == b"?" + b"x" * 100_000


def test_policy_refuses_with_401(before: EnvoyBefore) -> None:
    before.node.allow_only("somebody-else")
    client = before.dial()
    client.sendall(b"let me in")
    with pytest.raises((ConnectionResetError, EOFError)):
        read_exactly(client, 1)
    reason, event = before.node.closed()
    assert (reason, event.status) == (Reason.POLICY_DENIED, 401)


def test_nothing_listening_is_503(server: OurServer, tmp_path: Path) -> None:
    with listen(server.ip) as free:
        closed = port_of(free)
    with envoy_before(server, closed, tmp_path) as before:
        client = before.dial()
        client.sendall(b"anybody there?")
        with pytest.raises((ConnectionResetError, EOFError)):
            read_exactly(client, 1)
        reason, event = before.node.closed()
        assert (reason, event.status) == (Reason.CONNECT_REFUSED, 503)


def test_128_mib_each_way_at_once_with_checksum(before: EnvoyBefore) -> None:
    client = before.dial()
    client.sendall(b"!")  # Envoy asks for a tunnel when there is something to carry
    app = before.accept()
    assert read_exactly(app, 1) == b"!"
    assert_bulk(client, app)
    reason, event = before.node.closed()
    assert reason is Reason.OK, event
    assert event.bytes_sent - 1 == event.bytes_received == CHUNKS * 262144


def test_150_streams_at_once(before: EnvoyBefore) -> None:
    with echo_server(before.server.app):
        clients = [before.dial() for _ in range(150)]
        for number, client in enumerate(clients):
            client.sendall(number.to_bytes(4, "big") * 2000)
        for number, client in enumerate(clients):
            assert read_exactly(client, 8000) == number.to_bytes(4, "big") * 2000
        assert before.node.stats().connections_open == 150
        for client in clients:
            client.close()
        until(before.node.is_quiet, "all of them are over")


def test_our_drain_lets_envoys_stream_finish(before: EnvoyBefore) -> None:
    client = before.dial()
    client.sendall(b"before")
    app = before.accept()
    assert read_exactly(app, 6) == b"before"
    before.node.engine.drain(5.0)
    until(lambda: before.envoy.stat("cluster.peer.upstream_cx_close_notify") >= 1, "Envoy has seen our GOAWAY")
    app.sendall(b"after the GOAWAY")
    app.close()
    assert read_exactly(client, 16) == b"after the GOAWAY"
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(client) == b""
    before.node.event(EventKind.DRAINED)
    assert before.node.closed()[0] is Reason.OK


def test_envoy_drains_its_listener_and_streams_finish(before: EnvoyBefore) -> None:
    client = before.dial()
    client.sendall(b"before")
    app = before.accept()
    before.envoy.ask("/drain_listeners?graceful", "POST")
    app.sendall(b"after")
    assert read_exactly(client, 5) == b"after"
    app.close()
    client.close()
    until(before.node.is_quiet, "it is over")


def test_envoy_killed_mid_transfer_is_a_reset_for_the_application(before: EnvoyBefore) -> None:
    client = before.dial()
    client.sendall(b"part of an upload")
    app = before.accept()
    assert read_exactly(app, 17) == b"part of an upload"
    before.envoy.process.kill()
    assert is_reset(app)
    assert before.node.closed()[0] is Reason.TUNNEL_LOST


def test_a_reset_of_the_application_reaches_envoys_client(before: EnvoyBefore) -> None:
    client = before.dial()
    client.sendall(b"x")
    app = before.accept()
    read_exactly(app, 1)
    app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    app.close()
    with pytest.raises((ConnectionResetError, EOFError)):
        read_exactly(client, 1)
    assert before.node.closed()[0] is Reason.RESET_UPSTREAM
