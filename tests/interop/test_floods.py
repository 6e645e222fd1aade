"""Peers that attack: floods of frames that cost nothing to send end the tunnel, cost little and hurt nobody else."""

import contextlib
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator

import h2.events
import pytest
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from mesh.reasons import Reason
from tests.interop.conftest import OurClient, OurServer
from tests.support.hyper import Hyper
from tests.support.sockets import HBONE, accept, is_reset, read_exactly, until

FRAMES = 40_000


def resident_kib() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def requests(authority: str, extra: Callable[[int], bytes]) -> Iterator[bytes]:
    encoder = Encoder()
    for number in range(1, FRAMES, 2):
        block = encoder.encode([(":method", "CONNECT"), (":authority", authority)])
        yield HeadersFrame(number, data=block, flags=["END_HEADERS"]).serialize() + extra(number)


def continuation(_server: OurServer) -> Iterator[bytes]:
    block = Encoder().encode([(":method", "CONNECT"), (":authority", "1.2.3.4:80")])
    yield HeadersFrame(1, data=block).serialize()
    junk = b"".join(Encoder().encode([(f"x{number}", "v" * 1000)]) for number in range(16))
    for _ in range(FRAMES // 40):
        yield ContinuationFrame(1, data=junk).serialize()


def empty_continuation(_server: OurServer) -> Iterator[bytes]:
    yield HeadersFrame(1, data=b"").serialize()
    for _ in range(FRAMES):
        yield ContinuationFrame(1, data=b"").serialize()


def ping(_: OurServer) -> Iterator[bytes]:
    return (PingFrame(0, opaque_data=b"12345678").serialize() for _ in range(FRAMES))


def settings(_: OurServer) -> Iterator[bytes]:
    values = ({SettingsFrame.INITIAL_WINDOW_SIZE: number % 2 + 1000} for number in range(FRAMES))
    return (SettingsFrame(0, settings=value).serialize() for value in values)


def rapid_reset(server: OurServer) -> Iterator[bytes]:
    return requests(server.authority, lambda number: RstStreamFrame(number, error_code=8).serialize())


def empty_data(server: OurServer) -> Iterator[bytes]:
    yield next(requests(server.authority, lambda _: b""))
    for _ in range(FRAMES):
        yield DataFrame(1, data=b"").serialize()


def priority(_: OurServer) -> Iterator[bytes]:
    return (PriorityFrame(number * 2 + 1, depends_on=0, stream_weight=1).serialize() for number in range(FRAMES))


FLOODS = [continuation, empty_continuation, ping, settings, rapid_reset, empty_data, priority]


def flood(peer: Hyper, frames: Iterator[bytes]) -> int:
    """Send as long as the other end takes it, reading nothing; how many frames went out."""
    sent, batch = 0, bytearray()
    with contextlib.suppress(OSError):
        for frame in frames:
            batch += frame
            sent += 1
            if len(batch) > 65536:
                peer.socket.sendall(batch)
                batch.clear()
        peer.socket.sendall(batch)
    return sent


def still_serves(server: OurServer) -> None:
    """A well-behaved peer reaches the application (which may have connections of the attack before it)."""
    peer = server.peer()
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    peer.send(stream, b"hello")
    server.app.settimeout(5)
    while True:
        with accept(server.app) as app, contextlib.suppress(EOFError, OSError):
            if read_exactly(app, 5) == b"hello":
                return


@pytest.mark.parametrize("frames", FLOODS, ids=lambda frames: frames.__name__)
def test_a_flood_ends_the_tunnel_and_nobody_else_notices(
    server: OurServer, frames: Callable[[OurServer], Iterator[bytes]]
) -> None:
    before = resident_kib()
    peer = server.peer()
    peer.socket.settimeout(5)
    flood(peer, frames(server))
    peer.socket.settimeout(5)
    goaway = peer.until_over()
    assert goaway is None or goaway.error_code != 0
    until(lambda: server.node.stats().tunnels_open == 0, "the tunnel of the attack is gone")
    still_serves(server)
    assert server.node.stats().bytes_buffered < 1 << 20
    assert resident_kib() - before < 64 * 1024


def test_a_flood_is_logged_with_its_peer_and_reason(server: OurServer) -> None:
    peer = server.peer()
    flood(peer, ping(server))
    peer.until_over()
    reason, event = server.node.closed()
    assert reason is Reason.PROTOCOL_ERROR
    assert event.downstream and event.detail


@pytest.mark.parametrize("frame", [WindowUpdateFrame(1, window_increment=1).serialize(), b"\0\0\0\xfa\0\0\0\0\0"])
def test_frames_that_cost_nothing_to_ignore_are_ignored_without_end(server: OurServer, frame: bytes) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        flood(peer, (frame for _ in range(FRAMES)))
        app.sendall(b"alive")
        assert peer.read(stream, 5) == b"alive"


def test_headers_above_64_kib_are_431_and_the_tunnel_lives(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority, *((f"x-{number}", "v" * 7000) for number in range(10)))
    assert peer.status(stream) == 431
    still_serves(server)


def test_a_header_bomb_of_indexed_fields_is_refused(server: OurServer) -> None:
    peer = server.peer()
    bomb = [("x", "v" * 4000)] * 10_000  # 10 KiB on the wire, 40 MB once decoded
    stream = peer.connect(server.authority, *bomb)
    assert peer.status(stream) == 431
    still_serves(server)


def test_a_broken_header_block_ends_the_tunnel(server: OurServer) -> None:
    peer = server.peer()
    peer.raw(HeadersFrame(1, data=b"\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"]).serialize())
    assert peer.until_over().error_code == 9  # COMPRESSION_ERROR


@pytest.mark.parametrize(
    "frame",
    [
        DataFrame(1, data=b"x").serialize(),  # idle stream
        DataFrame(1, data=b"x").serialize()[:5] + bytes(4) + b"x",  # stream 0
        HeadersFrame(2, data=b"\x88", flags=["END_HEADERS"]).serialize(),  # even stream
        PushPromiseFrame(1, promised_stream_id=2, data=b"\x88", flags=["END_HEADERS"]).serialize(),
        WindowUpdateFrame(0, window_increment=1).serialize()[:-4] + bytes(4),  # increment 0
        b"\0\0\x05\x04\0\0\0\0\0abcde",  # SETTINGS of 5 bytes
        b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\0\x01",  # MAX_FRAME_SIZE 1
        b"\0\0\x06\x04\0\0\0\0\0\0\x04\xff\xff\xff\xff",  # INITIAL_WINDOW_SIZE above 2^31-1
        b"\0\0\x07\x06\0\0\0\0\0abcdefg",  # PING of 7 bytes
        ContinuationFrame(1, data=b"").serialize(),  # without HEADERS
    ],
)
def test_a_violation_of_http_2_ends_the_tunnel_with_an_error(server: OurServer, frame: bytes) -> None:
    peer = server.peer()
    peer.wait(h2.events.RemoteSettingsChanged)
    peer.raw(frame)
    goaway = peer.until_over()
    assert goaway is not None and goaway.error_code != 0
    assert server.node.closed()[0] is Reason.PROTOCOL_ERROR
    still_serves(server)


def test_a_server_that_floods_our_client_loses_its_tunnel(client: OurClient) -> None:
    app, peer, _ = client.opened()
    flood(peer, (PingFrame(0, opaque_data=b"12345678").serialize() for _ in range(FRAMES)))
    peer.until_over()
    assert is_reset(app)
    again, other, stream = client.opened()
    other.send(stream, b"x")
    assert read_exactly(again, 1) == b"x"


def test_a_server_that_pushes_is_a_violation(client: OurClient) -> None:
    app, peer, stream = client.opened()
    block = peer.h2.encoder.encode([(":method", "GET"), (":path", "/")])
    peer.raw(PushPromiseFrame(stream, promised_stream_id=2, data=block, flags=["END_HEADERS"]).serialize())
    assert peer.until_over().error_code == 1
    assert is_reset(app)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(4096),
        os.urandom(4096),
        b"\x16\x03\x01\xff\xff",
        b"PRI * HTTP/2.0\r\n",
    ],
    ids=("http/1.1", "zeros", "random", "half a hello", "plain h2"),
)
def test_garbage_on_15008_is_closed_and_counted(server: OurServer, garbage: bytes) -> None:
    with socket.create_connection((server.ip, HBONE), 5) as plain:
        plain.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(4096):
                pass
    reason, event = server.node.closed()
    assert reason in (Reason.TLS_FAILED, Reason.HANDSHAKE_TIMEOUT)
    assert event.downstream
    assert server.node.stats().refused[reason] == 1
    assert server.node.stats().handshakes_failed[1] == 1


def test_garbage_inside_tls_is_closed_and_logged(server: OurServer) -> None:
    peer = server.peer()
    peer.raw(os.urandom(4096))
    peer.until_over()
    assert server.node.closed()[0] is Reason.PROTOCOL_ERROR


def test_half_a_handshake_and_then_nothing_is_cut_by_a_deadline(server: OurServer) -> None:
    with socket.create_connection((server.ip, HBONE), 5) as plain, contextlib.suppress(ConnectionResetError):
        assert plain.recv(1) == b""
    assert server.node.closed()[0] is Reason.HANDSHAKE_TIMEOUT


def test_a_reset_in_the_handshake_is_counted(server: OurServer) -> None:
    plain = socket.create_connection((server.ip, HBONE), 5)
    until(lambda: server.node.stats().accepted == 1, "it is accepted")  # else there is nobody left to name
    plain.sendall(b"\x16\x03\x01\x02")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.close()
    assert server.node.closed()[0] is Reason.TLS_FAILED
    still_serves(server)


def test_goaway_from_a_client_lets_its_streams_finish(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        peer.raw(GoAwayFrame(0, last_stream_id=0).serialize())
        peer.send(stream, b"still", end=True)
        assert read_exactly(app, 5) == b"still"
        app.sendall(b"heard")
        app.shutdown(1)
        assert peer.read(stream, 5) == b"heard"
    peer.ended(stream)
    peer.until_over()
