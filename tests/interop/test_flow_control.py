"""Frame sizes, windows and settings of the peer: what we send keeps to them, and PING is answered whatever is stuck."""

import threading
from collections.abc import Callable

import h2.events
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from mesh.reasons import Reason
from tests.interop.conftest import OurClient, OurServer
from tests.support.hyper import Hyper
from tests.support.sockets import accept, is_reset, read_exactly

MIB = 1 << 20
FLOW_CONTROL_ERROR = 3
FRAME_SIZE_ERROR = 6
REFUSED_STREAM = 7
RST_STREAM = 3  # the frame


def in_background(do: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=do, name="application")
    thread.start()
    return thread


def pattern(size: int) -> bytes:
    """Bytes of which no 64 KiB repeat the ones before."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


def read_until_total(peer: Hyper, size: int) -> None:
    """Read until so many bytes of all streams have come."""
    while sum(peer.frame_sizes) < size:
        assert peer.pump()
    assert sum(peer.frame_sizes) == size


# --- frame sizes ----------------------------------------------------------------------------------------------------


def test_our_server_takes_a_data_frame_of_1_mib(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        peer.ping()  # their SETTINGS are in
        assert peer.h2.max_outbound_frame_size == MIB
        data = pattern(MIB)
        received: list[bytes] = []
        reader = in_background(lambda: received.append(read_exactly(app, 3 * MIB)))
        for _ in range(3):
            peer.h2.send_data(stream, data)
            peer.flush()
        reader.join()
    assert received == [data * 3]


def test_our_client_takes_a_data_frame_of_1_mib(client: OurClient) -> None:
    app, peer, stream = client.opened()
    peer.ping()
    assert peer.h2.max_outbound_frame_size == MIB
    data = pattern(MIB)
    received: list[bytes] = []
    reader = in_background(lambda: received.append(read_exactly(app, MIB)))
    peer.h2.send_data(stream, data)
    peer.flush()
    reader.join()
    assert received == [data]


def test_a_frame_above_our_limit_ends_the_tunnel(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        peer.raw((MIB + 1).to_bytes(3, "big") + bytes([0, 0]) + stream.to_bytes(4, "big") + bytes(1000))
        goaway = peer.until_over()
        assert goaway.error_code == FRAME_SIZE_ERROR
        assert is_reset(app)


def test_to_a_peer_with_the_default_limit_no_frame_exceeds_16_kib(server: OurServer, client: OurClient) -> None:
    app, far, far_stream = client.opened()
    near = server.peer()
    near_stream = near.connect(server.authority)
    data = pattern(3 * MIB)
    with accept(server.app) as behind:
        assert near.status(near_stream) == 200
        writers = [in_background(lambda: app.sendall(data)), in_background(lambda: behind.sendall(data))]
        assert far.read(far_stream, len(data)) == data
        assert near.read(near_stream, len(data)) == data
        for writer in writers:
            writer.join()
    assert max(far.frame_sizes) <= 16384 and max(near.frame_sizes) <= 16384
    assert max(far.frame_sizes) > 8192  # and they are not needlessly small


def test_a_peer_that_allows_larger_frames_gets_what_it_allows_at_most(client: OurClient) -> None:
    app, peer, stream = client.opened(settings={SettingCodes.MAX_FRAME_SIZE: 20_000})
    data = pattern(2 * MIB)
    writer = in_background(lambda: app.sendall(data))
    assert peer.read(stream, len(data)) == data
    writer.join()
    assert max(peer.frame_sizes) <= 20_000


# --- windows --------------------------------------------------------------------------------------------------------


def test_ping_is_answered_while_every_stream_is_blocked_by_the_peers_window(client: OurClient) -> None:
    app, peer, stream = client.opened()
    peer.gives_credit = False
    writers = [in_background(lambda: app.sendall(bytes(200_000)))]
    other, _ = client.next_stream(peer)
    writers.append(in_background(lambda: other.sendall(bytes(200_000))))
    peer.read(stream, 1)
    read_until_total(peer, 65535)
    for _ in range(3):
        peer.ping()
    assert sum(peer.frame_sizes) == 65535
    peer.grant(1 << 20)
    for number in (1, 3):
        peer.grant(1 << 20, number)
    read_until_total(peer, 400_000)
    for writer in writers:
        writer.join()


def test_ping_is_answered_while_our_applications_read_nothing(server: OurServer) -> None:
    peer = server.peer()
    streams = [peer.connect(server.authority) for _ in range(2)]
    apps = [accept(server.app) for _ in streams]
    assert [peer.status(stream) for stream in streams] == [200, 200]
    peer.ping()
    for stream in streams:
        while room := min(peer.h2.local_flow_control_window(stream), 65536):
            peer.h2.send_data(stream, bytes(room))
            peer.flush()
            peer.ping()
    sent = [4 * MIB, 4 * MIB]
    peer.ping(b"stuck...")
    assert server.node.stats().bytes_buffered < sum(sent) + MIB
    third = peer.connect(server.authority)  # the connection's window is larger than what two stalled streams hold
    with accept(server.app) as lively:
        assert peer.status(third) == 200
        peer.send(third, b"not stuck")
        assert read_exactly(lively, 9) == b"not stuck"
    for app in apps:
        app.close()


def test_more_than_the_stream_window_is_a_flow_control_error(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app):
        assert peer.status(stream) == 200
        for _ in range(30):
            frame = DataFrame(stream, data=bytes(MIB))
            try:
                peer.raw(frame.serialize())
            except OSError:
                break
        assert peer.reset_code(stream) == FLOW_CONTROL_ERROR
    assert server.node.stats().bytes_buffered < 32 * MIB


@pytest.mark.parametrize("window", [1, 100, 1000])
def test_a_peer_with_a_tiny_window_gets_everything_in_order(client: OurClient, window: int) -> None:
    app, peer, stream = client.opened(settings={SettingCodes.INITIAL_WINDOW_SIZE: window})
    data = pattern(window * 200)
    app.sendall(data)
    assert peer.read(stream, len(data)) == data
    # Bytes in flight before the peer's SETTINGS arrived may have used the default window.
    assert max(peer.frame_sizes[1:], default=0) <= max(window, 65535 - window)


def test_a_window_of_zero_holds_everything_back_until_it_is_opened(client: OurClient) -> None:
    app, peer, stream = client.opened(settings={SettingCodes.INITIAL_WINDOW_SIZE: 0})
    peer.ping()
    app.sendall(b"patience")
    peer.ping()
    assert stream not in peer.data
    peer.grant(3, stream)
    assert peer.read(stream, 3) == b"pat"
    peer.grant(100, stream)
    assert peer.read(stream, 5) == b"ience"


def change(peer: Hyper, settings: dict[int, int]) -> None:
    """Change our settings mid-way and wait until the other end has taken them."""
    peer.h2.update_settings(settings)
    peer.flush()
    peer.wait(h2.events.SettingsAcknowledged)


def test_a_window_that_shrinks_below_what_is_in_flight(client: OurClient) -> None:
    app, peer, stream = client.opened()
    peer.wait(h2.events.SettingsAcknowledged)
    peer.gives_credit = False
    writer = in_background(lambda: app.sendall(bytes(100_000)))
    read_until_total(peer, 65535)
    change(peer, {SettingCodes.INITIAL_WINDOW_SIZE: 10_000})  # the stream's window is now -55,535
    peer.grant(1 << 20)
    peer.grant(55_535, stream)  # back to 0
    peer.ping()
    assert sum(peer.frame_sizes) == 65535
    peer.grant(100_000, stream)
    read_until_total(peer, 100_000)
    writer.join()


def test_a_header_table_that_shrinks_to_nothing_mid_way(client: OurClient) -> None:
    _, peer, _ = client.opened()
    peer.wait(h2.events.SettingsAcknowledged)
    client.next_stream(peer)
    change(peer, {SettingCodes.HEADER_TABLE_SIZE: 0})
    for _ in range(3):
        client.app()
        stream, headers = peer.accept_request()
        peer.answer(stream, 200)
        assert dict(headers)[":authority"] == client.authority


def test_a_client_whose_header_table_shrinks_to_nothing(server: OurServer) -> None:
    peer = server.peer()
    peer.wait(h2.events.SettingsAcknowledged)
    for size in (0, 4096, 0):
        change(peer, {SettingCodes.HEADER_TABLE_SIZE: size})
        stream = peer.connect(server.authority)
        with accept(server.app):
            assert peer.status(stream) == 200


# --- streams at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2])
def test_max_concurrent_streams_of_the_peer_is_kept(client: OurClient, limit: int) -> None:
    first, peer, stream = client.opened(settings={SettingCodes.MAX_CONCURRENT_STREAMS: limit})
    peer.wait(h2.events.SettingsAcknowledged)
    held = [(first, peer, stream)]
    for number in range(1, 2 * limit + 1):
        if number % limit == 0:  # full: another tunnel
            app = client.app()
            other = client.accept(settings={SettingCodes.MAX_CONCURRENT_STREAMS: limit})
            fresh, _ = other.accept_request()
            other.answer(fresh, 200)
            other.wait(h2.events.SettingsAcknowledged)
            held.append((app, other, fresh))
        else:
            app, fresh = client.next_stream(held[-1][1])
            held.append((app, held[-1][1], fresh))
    for app, tunnel, number in held:
        app.sendall(b"mine")
        assert tunnel.read(number, 4) == b"mine"
        assert tunnel.h2.open_inbound_streams <= limit
    # A stream that ends makes room: the next connection takes it and no further tunnel is dialled.
    app, tunnel, number = held[0]
    app.shutdown(1)
    tunnel.ended(number)
    tunnel.end(number)
    client.node.closed()
    opened = client.node.stats().tunnels_opened[0]
    client.next_stream(tunnel)
    assert client.node.stats().tunnels_opened[0] == opened


def test_streams_above_our_limit_before_our_settings_are_seen_are_refused_one_by_one(server: OurServer) -> None:
    peer = server.peer()
    authority = server.authority
    encoded = (peer.h2.encoder.encode([(":method", "CONNECT"), (":authority", authority)]) for _ in range(201))
    frames = [HeadersFrame(2 * n + 1, data=block, flags=["END_HEADERS"]) for n, block in enumerate(encoded)]
    peer.raw(b"".join(frame.serialize() for frame in frames))
    apps = [accept(server.app) for _ in range(200)]
    raw = raw_frames(peer, lambda seen: any(frame[3] == RST_STREAM for frame in seen))
    refused = [frame for frame in raw if frame[3] == RST_STREAM]
    assert [int.from_bytes(frame[5:9], "big") for frame in refused] == [401]
    assert int.from_bytes(refused[0][9:13], "big") == REFUSED_STREAM
    peer.raw(DataFrame(1, data=b"alive").serialize())
    assert b"alive" in [read_exactly(apps[0], 5)]
    for app in apps:
        app.close()


def raw_frames(peer: Hyper, is_enough: Callable[[list[bytes]], bool]) -> list[bytes]:
    """Frames as they come, for streams that were opened behind h2's back."""
    seen: list[bytes] = []
    data = bytearray()
    while not is_enough(seen):
        data += peer.socket.recv(1 << 16)
        while len(data) >= 9 and len(data) >= (size := 9 + int.from_bytes(data[:3], "big")):
            seen.append(bytes(data[:size]))
            del data[:size]
    return seen


def test_a_peer_whose_first_settings_allow_no_stream_costs_a_reset_not_a_hang(client: OurClient) -> None:
    app = client.app()
    peer = client.accept(settings={SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    peer.accept_request()
    peer.raw(SettingsFrame(0, settings={SettingsFrame.MAX_CONCURRENT_STREAMS: 0}).serialize())
    assert is_reset(app)  # its request is not answered
    assert client.node.closed()[0] is Reason.REQUEST_TIMEOUT
