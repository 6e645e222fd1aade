"""Peers with a certificate that misbehave all the same: each costs itself its tunnel, and nobody else."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable

import h2.events
import pytest
from h2.settings import SettingCodes

from mesh.reasons import Reason
from tests.engine.conftest import ServerNode
from tests.support.hyper import PREFACE, Hyper, frame, tls_context
from tests.support.pki import Credential
from tests.support.sockets import HBONE, connect, is_reset, read_exactly, until

CONNECT = b"\x02\x07CONNECT" + b"\x01\x0a127.0.0.1:"  # and an :authority without a port


def send_raw(server: ServerNode, credentials: Credential, data: bytes) -> bytes:
    """Sends bytes over TLS, and reads what comes until the engine closes."""
    got = b""
    context = tls_context(False, credentials)
    with (
        connect((server.ip, HBONE)) as plain,
        context.wrap_socket(plain) as made,
        contextlib.suppress(OSError),
    ):
        made.sendall(data)
        while part := made.recv(1 << 16):
            got += part
    return got


def goaway_codes(data: bytes) -> list[int]:
    codes = []
    while len(data) >= 9:
        length = int.from_bytes(data[:3], "big")
        if data[3] == 7:
            codes.append(int.from_bytes(data[13:17], "big"))
        data = data[9 + length :]
    return codes


SETTINGS = PREFACE + frame(4)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("ping", SETTINGS + frame(6, body=b"12345678") * 9000),
        ("settings", SETTINGS + frame(4) * 9000),
        ("priority", SETTINGS + frame(2, 0, 3, b"\0\0\0\0\1") * 9000),
        (
            "rapid reset",
            SETTINGS
            + b"".join(frame(1, 4, 2 * i + 1, b"\x82") + frame(3, 0, 2 * i + 1, b"\0\0\0\x08") for i in range(9000)),
        ),
        ("continuation", SETTINGS + frame(1, 0, 1, CONNECT) + frame(9, 0, 1, b"\x40\1a\1b" * 100) * 2000),
        ("empty continuation", SETTINGS + frame(1, 0, 1, CONNECT) + frame(9, 0, 1) * 60000),
    ],
)
def test_a_flood_ends_the_tunnel(server: ServerNode, client_credential: Credential, name: str, data: bytes) -> None:
    send_raw(server, client_credential, data)
    # counted, not awaited as an event: those of the flood may have filled the ring
    until(lambda: server.engine.stats().refused[Reason.PROTOCOL_ERROR] == 1)
    assert server.engine.stats().tunnels_open == 0
    peer = server.dial(client_credential)
    assert peer.status(peer.connect(server.authority)) == 200


def test_empty_frames_on_an_open_stream_are_a_flood(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    with contextlib.suppress(OSError):
        peer.socket.sendall(frame(0, 0, stream) * 9000)
    assert server.engine.wait(lambda event: "flood" in event.detail).reason == Reason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE + b"\xff" * 100,
        SETTINGS + frame(0, 0, 0, b"x"),
        SETTINGS + frame(1, 4, 2, CONNECT),
        SETTINGS + frame(0, 0, 1, b"data on an idle stream"),
        SETTINGS + frame(8, 0, 0, b"\0\0\0\0"),
        SETTINGS + frame(5, 4, 1, b"\0\0\0\2" + CONNECT),
        SETTINGS + frame(1, 4, 1, b"\xff\xff\xff\xff\xff"),
        SETTINGS + frame(4, 0, 0, struct.pack(">HI", 5, 1)),
        SETTINGS + frame(4, 0, 0, struct.pack(">HI", 4, 0xFFFFFFFF)),
    ],
)
def test_a_violation_of_http2_ends_the_tunnel(server: ServerNode, client_credential: Credential, data: bytes) -> None:
    got = send_raw(server, client_credential, data)
    closed = server.engine.wait_closed()
    assert closed.reason == Reason.PROTOCOL_ERROR
    assert all(goaway_codes(got)), "with an error code, if there was time for one"
    until(lambda: server.engine.stats().tunnels_open == 0)


def test_a_few_thousand_pings_are_no_flood(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    for i in range(2000):
        peer.h2.ping(struct.pack(">Q", i))
        if i % 100 == 99:
            peer.flush()
            for _ in range(100):
                peer.wait(h2.events.PingAckReceived)
    assert peer.status(peer.connect(server.authority)) == 200


def open_by_hand(peer: Hyper, authority: str, stream: int) -> bytes:
    """A request as bytes: h2 would hold us to the bound."""
    return frame(1, 4, stream, peer.h2.encoder.encode([(":method", "CONNECT"), (":authority", authority)]))


def test_streams_beyond_those_offered_are_refused_alone(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    peer.wait(h2.events.RemoteSettingsChanged)
    assert peer.h2.remote_settings.max_concurrent_streams == 200
    streams = [peer.connect(server.authority) for _ in range(200)]
    for stream in streams:
        assert peer.status(stream) == 200
    peer.ping()  # and so they have our acknowledgement: now they cannot say that they raced us
    peer.h2.remote_settings.acknowledge()
    peer.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
    peer.h2.remote_settings.acknowledge()
    excess = [peer.connect(server.authority) for _ in range(20)]
    assert [peer.reset_code(stream) for stream in excess] == [7] * 20, "REFUSED_STREAM"
    assert server.engine.stats().refused[Reason.LIMIT_STREAMS] == 20
    assert server.engine.stats().connections_open == 200
    peer.end(streams[0])
    app = server.accept()
    app.close()
    until(lambda: server.engine.stats().connections_open == 199)
    assert peer.status(peer.connect(server.authority)) == 200


def test_streams_that_race_our_settings_are_refused_alone(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    peer.raw(b"".join(open_by_hand(peer, server.authority, 2 * i + 1) for i in range(300)))
    until(lambda: server.engine.stats().refused[Reason.LIMIT_STREAMS] == 100)
    assert server.engine.stats().connections_open == 200
    assert server.engine.stats().tunnels_open == 1


def test_a_flood_of_excess_streams_ends_the_tunnel(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    with contextlib.suppress(OSError):
        peer.raw(b"".join(open_by_hand(peer, server.authority, 2 * i + 1) for i in range(9000)))
    until(lambda: server.engine.stats().refused[Reason.PROTOCOL_ERROR] > 0)
    until(lambda: server.engine.stats().tunnels_open == 0)
    until(lambda: server.engine.stats().connections_open == 0)
    assert server.engine.stats().refused[Reason.LIMIT_STREAMS] < 6000


def test_a_peer_that_reads_nothing_is_given_up(
    server_credential: Credential, client_credential: Credential, make_node: Callable[..., ServerNode]
) -> None:
    node = make_node(ping_interval_ms=100, ping_timeout_ms=200)
    peer = node.dial(client_credential)
    stream = peer.connect(node.authority)
    assert peer.status(stream) == 200
    app = node.accept()
    app.settimeout(0.2)
    with contextlib.suppress(TimeoutError, ConnectionError):
        while True:
            app.sendall(b"x" * 65536)
    assert node.engine.wait_closed().reason == Reason.TUNNEL_LOST


def test_headers_that_never_end_do_not_keep_a_tunnel(
    make_node: Callable[..., ServerNode], client_credential: Credential
) -> None:
    node = make_node(ping_interval_ms=100, ping_timeout_ms=200)
    with connect((node.ip, HBONE)) as plain, tls_context(False, client_credential).wrap_socket(plain) as made:
        made.sendall(SETTINGS + frame(1, 0, 1, CONNECT))
        until(lambda: node.engine.stats().tunnels_opened[1] == 1)
        until(lambda: node.engine.stats().tunnels_open == 0)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_in_pieces_is_a_request(server: ServerNode, client_credential: Credential, size: int) -> None:
    peer = server.dial(client_credential)
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = peer.h2.get_next_available_stream_id()
    peer.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", server.authority)])
    peer.h2.send_data(stream, b"in pieces", end_stream=True)
    data = peer.h2.data_to_send()
    for at in range(0, len(data), size):
        peer.socket.sendall(data[at : at + size])
    assert peer.status(stream) == 200
    app = server.accept()
    assert read_exactly(app, 9) == b"in pieces"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("data on no stream", frame(0, 0, 0, b"x")),
        ("a frame too large", b"\xff\xff\xff\0\0\0\0\0\1"),
        ("compression", frame(1, 4, 3, b"\xff\xff\xff\xff\xff")),
        ("pings", frame(6, body=b"12345678") * 9000),
        ("an empty window", frame(8, 0, 0, b"\0\0\0\0")),
    ],
)
def test_who_breaks_a_rule_and_reads_nothing_has_a_second(
    server: ServerNode, client_credential: Credential, name: str, data: bytes
) -> None:
    context = tls_context(False, client_credential)
    peer = Hyper.dial(server.ip, context, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 30})
    server.peers.append(peer)
    peer.grant(1 << 30)
    assert peer.status(peer.connect(server.authority)) == 200
    app = server.accept()
    app.settimeout(0.3)
    with pytest.raises(TimeoutError):
        while True:
            app.send(bytes(1 << 16))
    peer.socket.sendall(data)
    over = time.monotonic() + 5
    with pytest.raises(OSError):
        while time.monotonic() < over:
            peer.socket.sendall(frame(6, body=b"12345678"))
            time.sleep(0.02)
    app.settimeout(5)
    assert is_reset(app)
    assert server.engine.wait_closed().reason == Reason.PROTOCOL_ERROR
    until(lambda: server.engine.stats().tunnels_open == 0)
