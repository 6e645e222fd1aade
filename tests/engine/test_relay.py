"""Bytes, ends and resets across one engine (plain) and across two (HBONE)."""

import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from mesh.reasons import Reason
from tests.engine.conftest import CLIENT_ID, SERVER_ID, Pair, close_client, make_client
from tests.support.sockets import (
    DEADLINE_S,
    is_refused,
    is_reset,
    listen,
    new_ip,
    port_of,
    read_exactly,
    read_to_end,
    until,
)

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def plain() -> Iterator[Callable[[], Ends]]:
    app = listen(new_ip())
    node = make_client(None, app.getsockname(), hbone=False)

    def open_() -> Ends:
        near = node.connect()
        far, _ = app.accept()
        far.settimeout(DEADLINE_S)
        node.open.append(far)
        return near, far

    yield open_
    close_client(node)
    app.close()


@pytest.fixture(params=["plain", "hbone"])
def open_ends(request: pytest.FixtureRequest) -> Callable[[], Ends]:
    if request.param == "plain":
        made: Callable[[], Ends] = request.getfixturevalue("plain")
        return made
    pair: Pair = request.getfixturevalue("pair")
    return pair.open


def reset(made: socket.socket) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()


def test_half_close_passes_each_way_on_its_own(open_ends: Callable[[], Ends]) -> None:
    near, far = open_ends()
    near.sendall(b"request")
    near.shutdown(socket.SHUT_WR)
    assert read_to_end(far) == b"request"
    far.sendall(b"answer")
    far.close()
    assert read_to_end(near) == b"answer"


def test_the_server_may_speak_first_and_end_first(open_ends: Callable[[], Ends]) -> None:
    near, far = open_ends()
    far.sendall(b"220 ready\r\n")
    far.shutdown(socket.SHUT_WR)
    assert read_to_end(near) == b"220 ready\r\n"
    near.sendall(b"bye")
    near.close()
    assert read_to_end(far) == b"bye"


@pytest.mark.parametrize("resetting", [0, 1])
def test_a_reset_stays_a_reset(open_ends: Callable[[], Ends], resetting: int) -> None:
    ends = open_ends()
    ends[0].sendall(b"x")
    assert read_exactly(ends[1], 1) == b"x"
    reset(ends[resetting])
    assert is_reset(ends[1 - resetting])


def pour(made: socket.socket, seed: bytes, blocks: int) -> str:
    digest = hashlib.sha256()
    block = seed * 2048
    for i in range(blocks):
        part = i.to_bytes(8, "big") + block
        digest.update(part)
        made.sendall(part)
    made.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


def drink(made: socket.socket) -> str:
    digest = hashlib.sha256()
    while part := made.recv(1 << 18):
        digest.update(part)
    return digest.hexdigest()


def exchange(near: socket.socket, far: socket.socket, blocks: int) -> None:
    """Both directions at once, each checked by its digest."""
    results: dict[str, str] = {}
    jobs = {
        "near sends": lambda: pour(near, os.urandom(32), blocks),
        "far sends": lambda: pour(far, os.urandom(32), blocks),
        "near reads": lambda: drink(near),
        "far reads": lambda: drink(far),
    }
    threads = [threading.Thread(target=lambda n=name, j=job: results.__setitem__(n, j())) for name, job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["near sends"] == results["far reads"]
    assert results["far sends"] == results["near reads"]


def test_bulk_arrives_whole_both_ways_at_once(open_ends: Callable[[], Ends]) -> None:
    near, far = open_ends()
    exchange(near, far, 400)


def test_many_streams_keep_their_bytes_apart(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"workers": 2}, {"workers": 2})
    ends = [pair.open() for _ in range(24)]
    # accept order is not connect order: find out who is whose
    for i, (near, _) in enumerate(ends):
        near.sendall(bytes([i]))
    by_first = {read_exactly(far, 1)[0]: far for _, far in ends}
    threads = [threading.Thread(target=exchange, args=(near, by_first[i], 24)) for i, (near, _) in enumerate(ends)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = pair.client.engine.stats()
    assert stats.tunnels_opened[0] <= 2, "streams share tunnels"


def test_a_connection_that_is_idle_holds_no_buffer(pair: Pair) -> None:
    ends = [pair.open() for _ in range(20)]
    for near, _ in ends:
        near.sendall(b"y" * 5000)
    for _, far in ends:
        read_exactly(far, 5000)
    until(lambda: pair.client.engine.stats().bytes_buffered == 0)
    until(lambda: pair.server.engine.stats().bytes_buffered == 0)


def test_both_ends_report_the_connection(pair: Pair) -> None:
    near, far = pair.open()
    near.sendall(b"abc")
    read_exactly(far, 3)
    far.sendall(b"defg")
    read_exactly(near, 4)
    near_port = near.getsockname()[1]
    near.close()
    assert far.recv(1) == b""
    far.close()
    at_client = pair.client.engine.wait_closed()
    at_server = pair.server.engine.wait_closed()
    for event in (at_client, at_server):
        assert (event.reason, event.opened, event.sent, event.received) == (Reason.OK, True, 3, 4)
        assert (event.path, event.status) == (2, 200)
        assert event.upstream == (pair.server.ip, pair.server.port)
    assert at_client.original == (pair.client.vip, pair.client.port)
    assert (at_client.identity, at_server.identity) == (SERVER_ID, CLIENT_ID)
    assert (at_client.source, at_client.destination) == (1, 10)
    # the application's own socket, at the address of its pod
    assert at_client.downstream == (pair.client.pod_ip, near_port)


def stall(near: socket.socket) -> int:
    """Writes until the path is full; returns how much went in."""
    near.setblocking(False)
    sent = 0
    quiet = 0
    while quiet < 20:
        try:
            sent += near.send(b"z" * 65536)
            quiet = 0
        except BlockingIOError:
            quiet += 1
            threading.Event().wait(0.01)
    near.settimeout(DEADLINE_S)
    return sent


def test_a_reader_that_never_reads_stops_its_writer_and_nobody_else(pair: Pair) -> None:
    stalled, unread = pair.open()
    sent = stall(stalled)
    assert sent < 64 << 20
    held = pair.server.engine.stats().bytes_buffered
    assert 0 < held <= (4 << 20) + (1 << 20), "one stream's window"
    for _ in range(8):
        near, far = pair.open()
        near.sendall(b"q" * 1_000_000)
        near.shutdown(socket.SHUT_WR)
        assert len(read_to_end(far)) == 1_000_000
        far.close()
    assert len(read_exactly(unread, sent)) == sent


def test_many_stalled_readers_stay_within_the_tunnels_bound(make_pair: Callable[..., Pair]) -> None:
    bound = 8 << 20
    pair = make_pair(None, {"tunnel_buffer_bytes": bound})
    ends = [pair.open() for _ in range(8)]
    for near, _ in ends:
        near.setblocking(False)
    for _ in range(60):
        for near, _ in ends:
            try:
                while near.send(b"w" * 65536):
                    pass
            except BlockingIOError:
                pass
        threading.Event().wait(0.01)
    # the bound, and the connection window that was open when it was met
    assert pair.server.engine.stats().bytes_buffered <= bound + (17 << 20)


def test_a_slow_reader_gets_every_byte(open_ends: Callable[[], Ends]) -> None:
    near, far = open_ends()
    payload = os.urandom(3_000_000)
    thread = threading.Thread(target=near.sendall, args=(payload,))
    thread.start()
    got = bytearray()
    while len(got) < len(payload):
        got += far.recv(20_000)
    thread.join()
    assert bytes(got) == payload


def test_a_plain_destination_that_refuses_resets_the_application() -> None:
    silent = listen(new_ip())
    address = silent.getsockname()
    silent.close()
    node = make_client(None, address, hbone=False)
    assert is_refused(node.connect)
    assert node.engine.wait_closed().reason == Reason.CONNECT_REFUSED
    close_client(node)


def test_a_refused_endpoint_is_left_for_another_one() -> None:
    silent = listen(new_ip())
    dead = silent.getsockname()
    silent.close()
    app = listen(new_ip())
    node = make_client(None, dead, app.getsockname(), hbone=False)
    for _ in range(12):
        near = node.connect()
        far, _ = app.accept()
        far.close()
        assert near.recv(1) == b""
    close_client(node)
    app.close()


def test_ports_and_listeners_are_gone_with_the_engine() -> None:
    app = listen(new_ip())
    node = make_client(None, app.getsockname(), hbone=False)
    close_client(node)
    with pytest.raises(ConnectionRefusedError):
        node.connect()
    assert port_of(app)
    app.close()
