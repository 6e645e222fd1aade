"""Envoy as HBONE server of our outbound: our client dials it because the workload says HBONE."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mesh.reasons import Reason
from tests.interop.node import Node
from tests.support import envoy
from tests.support.bulk import CHUNKS, assert_bulk, echo_server
from tests.support.pki import Credential
from tests.support.sockets import (
    HBONE,
    accept,
    connect,
    is_refused,
    is_reset,
    listen,
    new_ip,
    port_of,
    read_exactly,
    read_to_end,
    until,
)


class EnvoyBehind:
    """A pod of ours, an Envoy with 15008 and the application behind it."""

    def __init__(self, node: Node, running: envoy.Envoy, ip: str, captured: int, app: socket.socket) -> None:
        self.node, self.envoy, self.app = node, running, app
        self._address = ip, captured
        self.closing = ExitStack()

    def dial(self) -> socket.socket:
        return self.closing.enter_context(connect(self._address))

    def accept(self) -> socket.socket:
        return self.closing.enter_context(accept(self.app))


@contextmanager
def envoy_behind(
    client: Credential, server: Credential, folder: Path, answers: int = 200, listens: bool = True
) -> Iterator[EnvoyBehind]:
    ip, peer_ip, app_ip = new_ip(), new_ip(), new_ip()
    with Node() as node, listen(app_ip) as app:
        target = envoy.Address(app_ip, port_of(app))
        config = envoy.server_config(envoy.Address(peer_ip, HBONE), target, server, answers)
        if not listens:
            app.close()
        with envoy.running(config, folder, "server") as running:
            node.identity("client", client)
            node.workload("client", ip, here=True)
            node.workload("server", peer_ip)
            behind = EnvoyBehind(node, running, peer_ip, node.pod("client", ip), app)
            with behind.closing:
                yield behind


@pytest.fixture
def behind(client_credential: Credential, server_credential: Credential, tmp_path: Path) -> Iterator[EnvoyBehind]:
    with envoy_behind(client_credential, server_credential, tmp_path) as made:
        yield made


def test_echo_and_half_close_both_ways(behind: EnvoyBehind) -> None:
    client = behind.dial()
    client.sendall(b"question")
    app = behind.accept()
    assert read_exactly(app, 8) == b"question"
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(app) == b""
    app.sendall(b"answer after the end of the question")
    app.close()
    assert read_to_end(client) == b"answer after the end of the question"
    reason, event = behind.node.closed()
    assert (reason, event.status, event.bytes_sent, event.bytes_received) == (Reason.OK, 200, 8, 36)
    assert event.identity == "spiffe://cluster.local/ns/default/sa/server"


def test_a_server_that_speaks_first(behind: EnvoyBehind) -> None:
    client = behind.dial()
    app = behind.accept()
    app.sendall(b"220 ready\r\n")
    assert read_exactly(client, 11) == b"220 ready\r\n"


@pytest.mark.parametrize(("answers", "reason"), [(401, Reason.PEER_DENIED), (403, Reason.PEER_REJECTED)])
def test_a_refusal_of_envoy_is_a_reset_with_the_status_in_the_log(
    client_credential: Credential, server_credential: Credential, tmp_path: Path, answers: int, reason: Reason
) -> None:
    with envoy_behind(client_credential, server_credential, tmp_path, answers) as behind:
        assert is_refused(behind.dial)
        found, event = behind.node.closed()
        assert (found, event.status) == (reason, answers)


def test_nothing_listening_behind_envoy_is_503_and_a_reset(
    client_credential: Credential, server_credential: Credential, tmp_path: Path
) -> None:
    with envoy_behind(client_credential, server_credential, tmp_path, listens=False) as behind:
        assert is_refused(behind.dial)
        found, event = behind.node.closed()
        assert (found, event.status) == (Reason.PEER_UNAVAILABLE, 503)


def test_128_mib_each_way_at_once_with_checksum(behind: EnvoyBehind) -> None:
    client = behind.dial()
    assert_bulk(client, behind.accept())
    reason, event = behind.node.closed()
    assert reason is Reason.OK, event
    assert event.bytes_sent == event.bytes_received == CHUNKS * 262144


def test_150_streams_where_envoy_takes_100_on_one_connection(behind: EnvoyBehind) -> None:
    with echo_server(behind.app):
        clients = [behind.dial() for _ in range(150)]
        for number, client in enumerate(clients):
            client.sendall(number.to_bytes(4, "big") * 2000)
        for number, client in enumerate(clients):
            assert read_exactly(client, 8000) == number.to_bytes(4, "big") * 2000
        assert behind.node.stats().tunnels_opened[0] == 2
        for client in clients:
            client.close()
        until(behind.node.is_quiet, "all of them are over")


def test_envoys_drain_moves_new_connections_to_a_new_tunnel_and_finishes_the_old(behind: EnvoyBehind) -> None:
    client = behind.dial()
    app = behind.accept()
    client.sendall(b"before")
    assert read_exactly(app, 6) == b"before"
    behind.envoy.ask("/drain_listeners?graceful&skip_exit", "POST")
    app.sendall(b"during the drain")
    assert read_exactly(client, 16) == b"during the drain"
    client.sendall(b"and on")
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(app) == b"and on"
    app.sendall(b"bye")
    app.close()
    assert read_to_end(client) == b"bye"
    assert behind.node.closed()[0] is Reason.OK


def test_envoy_killed_mid_transfer_is_a_reset_for_our_application(behind: EnvoyBehind) -> None:
    client = behind.dial()
    app = behind.accept()
    app.sendall(b"part of a download")
    assert read_exactly(client, 18) == b"part of a download"
    behind.envoy.process.kill()
    assert is_reset(client)
    assert behind.node.closed()[0] is Reason.TUNNEL_LOST


def test_envoy_that_ends_behaves_as_a_lost_tunnel(behind: EnvoyBehind) -> None:
    client = behind.dial()
    app = behind.accept()
    app.sendall(b"part")
    assert read_exactly(client, 4) == b"part"
    behind.envoy.process.terminate()
    assert is_reset(client)


def test_a_reset_of_our_application_reaches_the_one_behind_envoy(behind: EnvoyBehind) -> None:
    client = behind.dial()
    app = behind.accept()
    client.sendall(b"x")
    read_exactly(app, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with pytest.raises((ConnectionResetError, EOFError)):
        read_exactly(app, 1)
    assert behind.node.closed()[0] is Reason.RESET_DOWNSTREAM
