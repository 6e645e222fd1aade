"""What the engine sends as HBONE client (table 9.2) and what it makes of a peer's answers."""

import contextlib
import re
import resource
import threading
from collections.abc import Callable, Iterator

import h2.errors
import h2.events
import h2.settings
import pytest

from mesh.reasons import Reason
from tests.engine.conftest import SERVER_ID, FarEnd, close_client, make_client
from tests.support.border import lib
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import (
    HBONE,
    accept,
    is_refused,
    is_reset,
    listen,
    new_ip,
    read_exactly,
    read_to_end,
    reset,
    until,
)


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_settings_and_headers_are_those_of_the_table(far: FarEnd) -> None:
    near, peer, request = far.request()
    settings = peer.wait(h2.events.RemoteSettingsChanged)
    codes = h2.settings.SettingCodes
    assert {code: change.new_value for code, change in settings.changed_settings.items()} == {
        codes.ENABLE_PUSH: 0,
        codes.INITIAL_WINDOW_SIZE: 4194304,
        codes.MAX_FRAME_SIZE: 1048576,
        codes.MAX_HEADER_LIST_SIZE: 16384,
    }
    update = peer.wait(h2.events.WindowUpdated)
    assert (update.stream_id, update.delta) == (0, 16711681)
    names = [name for name, _ in request.headers]
    values = dict(request.headers)
    assert names == [":method", ":authority", "baggage", "forwarded", "traceparent"]
    assert values[":method"] == "CONNECT"
    assert values[":authority"] == f"{far.ip}:80"
    assert values["baggage"] == "k8s.namespace.name=default"
    assert values["forwarded"] == f'for="{far.node.pod_ip}:{near.getsockname()[1]}"'
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", values["traceparent"])
    assert request.stream_id == 1
    assert peer.socket.version() == "TLSv1.3"
    assert peer.socket.cipher()[0].startswith("TLS_AES_")


def test_connections_share_a_tunnel_one_after_the_other(far: FarEnd) -> None:
    near, peer, stream = far.answered()
    for expected in (3, 5, 7):
        near.close()
        peer.wait(h2.events.StreamEnded, stream=stream)
        peer.h2.end_stream(stream)
        near = far.node.connect()
        request = peer.wait(h2.events.RequestReceived)
        assert request.stream_id == expected
        stream = request.stream_id
        peer.h2.send_headers(stream, [(":status", "200")])
        peer.flush()
    assert far.node.engine.stats().tunnels_opened[0] == 1


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Reason.PEER_DENIED),
        (503, Reason.PEER_UNAVAILABLE),
        (404, Reason.PEER_REJECTED),
        (204, Reason.PEER_REJECTED),
    ],
)
def test_another_status_cancels_the_stream_and_resets_the_application(far: FarEnd, status: int, reason: Reason) -> None:
    near, peer, request = far.request()
    peer.h2.send_headers(request.stream_id, [(":status", str(status))])
    peer.flush()
    assert is_reset(near)
    reset = peer.wait(h2.events.StreamReset)
    assert reset.error_code == h2.errors.ErrorCodes.CANCEL
    closed = far.node.engine.wait_closed()
    assert (closed.reason, closed.status, closed.opened) == (reason, status, False)


def test_half_close_and_late_reset_are_clean(far: FarEnd) -> None:
    near, peer, stream = far.answered()
    peer.send(stream, b"all of it", end=True)
    peer.h2.reset_stream(stream, h2.errors.ErrorCodes.NO_ERROR)
    peer.flush()
    assert read_to_end(near) == b"all of it"


def test_who_still_sends_after_a_late_reset_reads_everything_and_then_hears_of_it(far: FarEnd) -> None:
    near, peer, stream = far.answered()
    answer = bytes(range(256)) * 8000
    peer.send(stream, answer, end=True)
    peer.h2.reset_stream(stream, h2.errors.ErrorCodes.NO_ERROR)
    peer.flush()
    near.sendall(b"nobody hears this" * 1000)
    assert read_exactly(near, len(answer)) == answer
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            near.sendall(b"nor this")


def test_an_end_with_the_answer_is_an_end(far: FarEnd) -> None:
    near, peer, request = far.request()
    peer.h2.send_headers(request.stream_id, [(":status", "200")], end_stream=True)
    peer.flush()
    assert near.recv(1) == b""
    near.sendall(b"still open this way")
    near.close()
    assert peer.read(request.stream_id, 19) == b"still open this way"


def test_interim_answers_are_passed_over(far: FarEnd) -> None:
    near, peer, request = far.request()
    peer.h2.send_headers(request.stream_id, [(":status", "103")])
    peer.h2.send_headers(request.stream_id, [(":status", "200")])
    peer.send(request.stream_id, b"hi", end=True)
    assert read_to_end(near) == b"hi"


def cut(peer: Hyper, stream: int, how: str) -> None:
    if how == "reset":
        peer.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        peer.flush()
    elif how == "goaway":
        peer.h2.close_connection(last_stream_id=stream)
        peer.flush()
        peer.socket.close()
    else:
        peer.socket.close()


@pytest.mark.parametrize("how", ["reset", "goaway", "close"])
def test_an_end_without_end_stream_is_a_reset(far: FarEnd, how: str) -> None:
    near, peer, stream = far.answered()
    peer.send(stream, b"half of it")
    assert read_exactly(near, 10) == b"half of it"
    cut(peer, stream, how)
    assert is_reset(near)
    closed = far.node.engine.wait_closed()
    assert closed.reason == (Reason.RESET_UPSTREAM if how == "reset" else Reason.TUNNEL_LOST)
    assert closed.received == 10


def test_after_goaway_new_connections_take_a_new_tunnel_and_old_ones_live(far: FarEnd) -> None:
    near, peer, stream = far.answered()
    peer.h2.close_connection(last_stream_id=stream)
    data = peer.h2.data_to_send()
    peer.socket.sendall(data)
    far.node.engine.poll_events(0.1)
    _, other, request = far.request()
    assert other is not peer and request.stream_id == 1
    near.sendall(b"old")
    peer.socket.settimeout(5)
    assert peer.socket.recv(1 << 16)


def test_a_refused_stream_is_tried_again(far: FarEnd) -> None:
    near, peer, request = far.request()
    peer.h2.reset_stream(request.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
    peer.flush()
    again = peer.wait(h2.events.RequestReceived)
    peer.h2.send_headers(again.stream_id, [(":status", "200")])
    peer.send(again.stream_id, b"ok", end=True)
    assert read_to_end(near) == b"ok"


def test_a_peer_with_the_default_frame_size_gets_no_larger_frame(far: FarEnd) -> None:
    near, peer, stream = far.answered()
    payload = bytes(range(256)) * 2000
    thread = threading.Thread(target=near.sendall, args=(payload,))
    thread.start()
    assert peer.read(stream, len(payload)) == payload
    thread.join()
    assert max(peer.frame_sizes) <= 16384


def test_ping_is_answered_while_every_stream_is_blocked(far: FarEnd) -> None:
    near, peer, stream = far.answered()
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):
        while True:
            near.sendall(b"n" * 65536)
    peer.gives_credit = False
    peer.h2.send_data(stream, b"u" * 16384)
    peer.h2.ping(b"12345678")
    peer.flush()
    assert peer.wait(h2.events.PingAckReceived).ping_data == b"12345678"


def test_the_engine_pings_an_idle_peer_and_gives_up_on_a_dead_one(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(ping_interval_ms=100, ping_timeout_ms=300)
    near, peer, _ = far.answered()
    peer.wait(h2.events.PingReceived)
    # the library has answered; from here on nobody reads
    assert is_reset(near)
    closed = far.node.engine.wait_closed()
    assert closed.reason == Reason.TUNNEL_LOST


def test_an_idle_tunnel_is_closed(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(pool_idle_ms=100)
    near, peer, stream = far.answered()
    near.close()
    peer.wait(h2.events.StreamEnded, stream=stream)
    peer.h2.end_stream(stream)
    peer.flush()
    goaway = peer.wait(h2.events.ConnectionTerminated)
    assert goaway.error_code == h2.errors.ErrorCodes.NO_ERROR


def test_a_tunnel_that_is_in_use_is_not_idle(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(pool_idle_ms=100)
    near, peer, stream = far.answered()
    near.close()
    peer.wait(h2.events.StreamEnded, stream=stream)
    peer.end(stream)
    peer.ping()
    near = far.node.connect()
    stream, _ = peer.accept_request()
    peer.answer(stream, 200)
    far.node.engine.wait_closed()  # the first
    far.node.engine.poll_events(0.2)
    far.node.connect()
    peer.accept_request()


def test_a_tunnel_for_which_nobody_waited_is_closed_when_idle(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(pool_idle_ms=100)
    near = far.node.connect()
    with accept(far.listener) as plain:
        reset(near)
        far.node.engine.wait_closed()
        with Hyper(far.context.wrap_socket(plain, server_side=True), False) as peer:
            peer.wait(h2.events.ConnectionTerminated)


def test_who_waited_for_room_hears_why_there_is_none(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(max_streams_per_tunnel=1)
    near, peer, stream = far.answered()
    waiting = far.node.connect()
    accept(far.listener).close()  # the second tunnel, which comes to nothing
    until(lambda: far.node.engine.stats().handshakes_failed[0] == 1)
    near.close()
    peer.wait(h2.events.StreamEnded, stream=stream)
    peer.h2.end_stream(stream)
    end = peer.h2.data_to_send()
    peer.h2.close_connection()
    with no_more_descriptors():
        peer.raw(end)
        assert is_reset(waiting)
    closed = far.node.engine.wait(lambda event: event.kind == lib.CV_EVENT_CLOSED and not event.opened)
    assert closed.reason == Reason.LIMIT_DESCRIPTORS


def test_no_answer_in_time_is_a_timeout(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(request_timeout_ms=100)
    near, _, _ = far.request()
    assert is_reset(near)
    assert far.node.engine.wait_closed().reason == Reason.REQUEST_TIMEOUT


@pytest.mark.parametrize(
    ("uris", "passes"),
    [
        ([SERVER_ID], True),
        (["https://example.com", spiffe("other"), SERVER_ID], True),
        ([spiffe("other")], False),
        ([spiffe("server", domain="other.local")], False),
        ([SERVER_ID + "x"], False),
    ],
)
def test_the_peer_must_show_an_expected_identity(
    make_far: Callable[..., FarEnd], authority: Authority, uris: list[str], passes: bool
) -> None:
    far = make_far(authority.issue(*uris))
    near = far.node.connect()
    if passes:
        peer = far.accept()
        assert peer.wait(h2.events.RequestReceived)
    else:
        # in TLS 1.3 the server may think it is done: the alert follows
        try:
            far.accept().pump()
        except OSError as error:
            assert "CERTIFICATE_UNKNOWN" in str(error).upper() or "reset" in str(error).lower()
        assert is_reset(near)
        assert far.node.engine.wait_closed().reason == Reason.TLS_UNTRUSTED


def test_a_peer_of_another_authority_is_not_believed(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(Authority().issue(SERVER_ID))
    near = far.node.connect()
    with pytest.raises(OSError):
        far.accept().pump()
    assert is_reset(near)
    assert far.node.engine.wait_closed().reason == Reason.TLS_UNTRUSTED


def test_a_silent_next_hop_runs_into_the_handshake_deadline(make_far: Callable[..., FarEnd]) -> None:
    far = make_far(handshake_timeout_ms=100)
    near = far.node.connect()
    assert is_reset(near)
    assert far.node.engine.wait_closed().reason == Reason.HANDSHAKE_TIMEOUT


def test_without_a_certificate_the_engine_asks_for_it_and_waits(
    client_credential: Credential, server_credential: Credential
) -> None:
    ip = new_ip()
    listener = listen(ip, HBONE)
    node = make_client(None, (ip, 80))
    near = node.connect()
    asked = node.engine.wait_kind(3)
    assert asked.identity == "spiffe://cluster.local/ns/default/sa/client"
    assert not node.engine.put_identity(asked.identity, client_credential)
    peer = Hyper.accept(listener, tls_context(True, server_credential))
    assert peer.wait(h2.events.RequestReceived)
    assert near
    peer.close()
    listener.close()
    close_client(node)


def test_a_certificate_that_never_comes_resets_the_application() -> None:
    node = make_client(None, (new_ip(), 80), source_wait_ms=100)
    assert is_refused(node.connect)
    assert node.engine.wait_closed().reason == Reason.IDENTITY_UNAVAILABLE
    close_client(node)
