"""Applications and peers that read nothing, write nothing, or do nothing in great number."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from mesh.reasons import Reason
from tests.interop.conftest import OurClient, OurServer, our_server
from tests.interop.node import Node
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import accept, new_ip, until
from ztunnel.events import EventKind

MIB = 1 << 20
IDLE = 5000
ROOT = Path(__file__).resolve().parents[2]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def test_an_application_that_never_reads_stops_its_own_stream_only(server: OurServer) -> None:
    peer = server.peer()
    stuck, lively = peer.connect(server.authority), peer.connect(server.authority)
    first, second = accept(server.app), accept(server.app)
    assert [peer.status(stream) for stream in (stuck, lively)] == [200, 200]
    peer.ping()
    while room := min(peer.h2.local_flow_control_window(stuck), 65536):  # credit comes back for what it buffers itself
        peer.h2.send_data(stuck, bytes(room))
        peer.flush()
        peer.ping()
    peer.send(lively, b"unaffected")
    heard = {bytes(sock.recv(10)) for sock in (first, second)}
    assert b"unaffected" in heard
    assert server.node.stats().bytes_buffered <= 5 * MIB
    peer.socket.close()
    for sock in (first, second):
        sock.close()
    until(server.node.is_quiet, "what was buffered is given back")


def test_an_application_that_never_reads_its_answer_stops_the_peer(client: OurClient) -> None:
    _, peer, stream = client.opened()
    peer.ping()
    sent = 0
    while room := min(peer.h2.local_flow_control_window(stream), 65536):
        peer.h2.send_data(stream, bytes(room))
        sent += room
        peer.flush()
        peer.ping()
    assert client.node.stats().bytes_buffered <= 5 * MIB
    assert sent < 64 * MIB  # a stream's window and the kernel's own buffers
    peer.reset(stream)
    until(client.node.is_quiet, "what was buffered is given back")


def test_an_application_that_writes_to_a_peer_without_credit_is_stopped(client: OurClient) -> None:
    app, peer, stream = client.opened()
    peer.gives_credit = False
    app.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while sent < 64 * MIB:
            sent += app.send(bytes(65536))
    until(lambda: client.node.stats().bytes_buffered > 0, "something waits for credit")
    assert client.node.stats().bytes_buffered <= MIB
    peer.read(stream, 1)
    peer.ping()


def test_applications_that_never_write_stay_open_and_cost_no_buffer(server: OurServer, client: OurClient) -> None:
    app, far, far_stream = client.opened()
    near = server.peer()
    stream = near.connect(server.authority)
    with accept(server.app) as behind:
        assert near.status(stream) == 200
        until(lambda: server.node.stats().bytes_buffered == client.node.stats().bytes_buffered == 0, "idle: no buffers")
        behind.sendall(b"x")
        app.sendall(b"y")
        assert (near.read(stream, 1), far.read(far_stream, 1)) == (b"x", b"y")


class Applications:
    """The process of idle.py."""

    def __init__(self, ip: str, vip: str, port: int) -> None:
        command = [sys.executable, "-m", "tests.interop.idle", ip, vip, str(port)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)

    def __enter__(self) -> Self:
        self.port = int(self._answer())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=20)

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def order(self, words: str | int) -> None:
        assert self._process.stdin
        print(words, file=self._process.stdin, flush=True)
        assert self._answer() == "ok"


@contextlib.contextmanager
def all_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_5000_idle_connections_through_tunnels_between_two_of_our_nodes(
    authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both nodes are in this process: a descriptor each for every connection; the applications are in another."""
    here, there, vip = new_ip(), new_ip(), new_ip()
    with all_descriptors(), Node() as near, Node() as far:
        near.identity("client", authority.issue(spiffe("client")))
        far.identity("server", authority.issue(spiffe("server")))
        captured = near.pod("client", here)
        far.pod("server", there)
        for node, is_near in ((near, True), (far, False)):
            node.workload("client", here, here=is_near)
            node.workload("server", there, here=not is_near, serves="idle")
        with Applications(there, vip, captured) as applications:
            near.service("idle", vip, {captured: applications.port})
            applications.order(10)
            before = resident_mib()
            applications.order(IDLE - 10)
            figure = resident_mib() - before
            assert near.stats().connections_open == far.stats().connections_open == IDLE
            assert near.stats().tunnels_open == far.stats().tunnels_open == IDLE // 100
            until(lambda: near.stats().bytes_buffered == far.stats().bytes_buffered == 0, "idle: no buffers")
            with capsys.disabled():
                print(f"\n{IDLE} idle connections, both nodes: {figure:.1f} MiB, {figure * 1024 / IDLE:.1f} KiB each")
            assert figure * 1024 / IDLE < 16
            applications.order("check")
        until(lambda: near.is_quiet() and far.is_quiet(), "all of them are over", 20)


def test_descriptors_that_run_out_are_refused_with_the_reason_and_come_back(
    server_credential: Credential, client_credential: Credential
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with our_server(server_credential, client_credential) as server:
        peer = server.peer()
        warm = peer.connect(server.authority)
        assert peer.status(warm) == 200
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            refused = peer.connect(server.authority)
            assert peer.status(refused) == 503
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        server.node.event(EventKind.CLOSED)
        again = peer.connect(server.authority)
        assert peer.status(again) == 200


def test_more_connections_than_a_pod_may_have_are_503(
    server_credential: Credential, client_credential: Credential
) -> None:
    with our_server(server_credential, client_credential, max_connections_per_pod=3) as server:
        peer = server.peer()
        statuses = []
        for _ in range(5):
            statuses.append(peer.status(peer.connect(server.authority)))
        assert statuses == [200, 200, 200, 503, 503]
        assert server.node.closed()[0] is Reason.LIMIT_CONNECTIONS


def test_a_peer_that_opens_more_handshakes_than_allowed_is_refused(
    server_credential: Credential, client_credential: Credential
) -> None:
    with our_server(server_credential, client_credential, max_handshakes=4) as server:
        half = []
        for _ in range(6):
            with contextlib.suppress(ConnectionResetError):  # as soon as in connect()
                half.append(socket.create_connection((server.ip, 15008), 5))
        try:
            reasons = {server.node.closed()[0] for _ in range(2)}
            assert reasons == {Reason.LIMIT_HANDSHAKES}
        finally:
            for sock in half:
                sock.close()
        until(lambda: serves(server), "handshakes that were given up make room")


def serves(server: OurServer) -> bool:
    try:
        with server.peer() as peer:
            return peer.status(peer.connect(server.authority)) == 200
    except OSError:
        return False
