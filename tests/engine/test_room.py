"""Connections that want more streams than a tunnel has room for: each gets another tunnel, or the room that comes."""

import socket
import struct
import time
from collections.abc import Callable

import h2.events
import pytest
from h2.settings import SettingCodes

from mesh.reasons import Reason
from tests.engine.conftest import FarEnd
from tests.support.hyper import Hyper, frame
from tests.support.sockets import accept, is_reset, read_exactly, until

SETTINGS, GOAWAY, MAX_CONCURRENT_STREAMS = 4, 7, 3


def streams_allowed(count: int) -> bytes:
    return frame(SETTINGS, body=struct.pack(">HI", MAX_CONCURRENT_STREAMS, count))


def goaway(last: int) -> bytes:
    return frame(GOAWAY, body=struct.pack(">II", last, 0))


def serve(peer: Hyper, count: int) -> None:
    """Answers so many requests, and says "ok" on each."""
    for _ in range(count):
        stream, _ = peer.accept_request()
        peer.answer(stream, 200)
        peer.send(stream, b"ok")


def another(far: FarEnd, allowed: int) -> Hyper:
    """The next tunnel, whose peer allows so many streams."""
    return far.accept(settings={SettingCodes.MAX_CONCURRENT_STREAMS: allowed})


def is_served(near: socket.socket) -> bool:
    return read_exactly(near, 2) == b"ok"


def wait_in_vain(far: FarEnd) -> socket.socket:
    """A connection that waits for room, after the tunnel that was dialled for it came to nothing."""
    failed = far.node.engine.stats().handshakes_failed[0]
    near = far.node.connect()
    accept(far.listener).close()
    until(lambda: far.node.engine.stats().handshakes_failed[0] == failed + 1)
    return near


def test_who_waits_for_a_tunnel_that_is_retired_gets_another(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(max_streams_per_tunnel=1, connect_timeout_ms=20000)
    old, peer, stream = far.answered()
    waiting = [wait_in_vain(far)]
    peer.raw(goaway(stream))
    serve(far.accept(), 1)
    assert is_served(waiting[0])
    old.sendall(b"still here")
    assert peer.read(stream, 10) == b"still here"
    peer.send(stream, b"here too")
    assert read_exactly(old, 8) == b"here too"


def test_a_next_hop_that_allows_nothing_and_goes_away_is_not_dialled_for_ever(far: FarEnd) -> None:
    near = far.node.connect()
    for _ in range(2):
        peer = far.accept()
        peer.raw(streams_allowed(0) + goaway(0))
    assert is_reset(near)
    assert far.node.engine.wait_closed().reason == Reason.TUNNEL_LOST


def stall(far: FarEnd) -> tuple[socket.socket, Hyper, int]:
    """A tunnel full of what its peer does not read: nothing that is asked on it leaves."""
    near, peer, stream = far.answered()
    peer.gives_credit = False
    peer.grant(1 << 30)
    peer.grant(1 << 30, stream)
    near.settimeout(0.3)
    while far.node.engine.stats().bytes_buffered < 256 * 1024:
        with pytest.raises(TimeoutError):
            while True:
                near.send(bytes(1 << 16))
    near.settimeout(10)
    return near, peer, stream


def ask(far: FarEnd, count: int) -> list[socket.socket]:
    """So many connections whose requests are queued on the tunnel that is there."""
    hits = far.node.engine.stats().pool_hits
    made = [far.node.connect() for _ in range(count)]
    until(lambda: far.node.engine.stats().pool_hits == hits + count)
    return made


def end(near: socket.socket, peer: Hyper, stream: int) -> None:
    """Reads to the end of a stream that was stalled."""
    near.shutdown(socket.SHUT_WR)
    peer.gives_credit = True
    peer.ended(stream)
    peer.end(stream)


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_requests_beyond_what_a_peer_turns_out_to_allow_go_to_other_tunnels(far: FarEnd, allowed: int) -> None:
    near, peer, stream = stall(far)
    asking = ask(far, 5)
    peer.raw(streams_allowed(allowed))
    stay = allowed - 1
    for go in range(5 - stay, 0, -allowed):
        serve(another(far, allowed), min(go, allowed))
    assert all(is_served(made) for made in asking[stay:])
    assert not any(isinstance(event, h2.events.RequestReceived) for event in peer.seen)
    end(near, peer, stream)
    serve(peer, stay)
    assert all(is_served(made) for made in asking[:stay])
    assert far.node.engine.stats().tunnels_opened[0] == 1 + -(-(5 - stay) // allowed)


def test_what_was_taken_back_is_never_sent_and_its_room_is_there_again(far: FarEnd) -> None:
    near, peer, stream = stall(far)
    asking = ask(far, 2)
    peer.raw(streams_allowed(1))
    for _ in asking:
        serve(another(far, 1), 1)
    assert all(is_served(made) for made in asking)
    end(near, peer, stream)
    far.node.engine.wait_closed()
    peer.ping()
    assert not any(isinstance(event, h2.events.RequestReceived) for event in peer.seen)
    new = far.node.connect()
    serve(peer, 1)
    assert is_served(new)


def test_who_is_allowed_nothing_waits_until_it_is(far: FarEnd) -> None:
    near, peer, stream = stall(far)
    asking = ask(far, 3)
    peer.raw(streams_allowed(0))
    end(near, peer, stream)
    far.node.engine.wait_closed()
    asking.append(far.node.connect())
    peer.ping()
    assert not any(isinstance(event, h2.events.RequestReceived) for event in peer.seen)
    peer.raw(streams_allowed(100))
    serve(peer, 4)
    assert all(is_served(made) for made in asking)
    assert far.node.engine.stats().tunnels_opened[0] == 1


def test_what_an_application_gave_up_meanwhile_is_not_made_again(far: FarEnd) -> None:
    _, peer, _ = stall(far)
    asking = ask(far, 3)
    asking[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asking[1].close()
    far.node.engine.wait_closed()
    peer.raw(streams_allowed(1))
    for _ in range(2):
        serve(another(far, 1), 1)
    assert is_served(asking[0]) and is_served(asking[2])
    assert far.node.engine.stats().tunnels_opened[0] == 3


def test_requests_that_have_not_left_before_a_goaway_go_to_another_tunnel(far: FarEnd) -> None:
    near, peer, stream = stall(far)
    asking = ask(far, 3)
    peer.raw(goaway(stream))
    serve(far.accept(), 3)
    assert all(is_served(made) for made in asking)
    end(near, peer, stream)
    far.node.engine.wait_closed()
    assert not any(isinstance(event, h2.events.RequestReceived) for event in peer.seen)


def test_requests_that_have_not_left_when_a_peer_breaks_a_rule_go_to_another_tunnel(far: FarEnd) -> None:
    near, peer, _ = stall(far)
    asking = ask(far, 3)
    peer.raw(frame(0, body=b"on no stream"))
    assert is_reset(near)
    serve(far.accept(), 3)
    assert all(is_served(made) for made in asking)
    with pytest.raises(OSError):
        for _ in range(250):
            peer.raw(frame(6, body=b"12345678"))
            time.sleep(0.02)
