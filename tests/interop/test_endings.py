"""How connections end: what a tunnel's end, a GOAWAY and a RST_STREAM mean to applications, in both roles."""

import socket
import struct
from collections.abc import Callable

import h2.events
import pytest
from hyperframe.frame import GoAwayFrame, RstStreamFrame

from mesh.reasons import Reason
from tests.interop.conftest import OurClient, OurServer, our_client, our_server
from tests.support.hyper import Hyper
from tests.support.pki import Credential
from tests.support.sockets import accept, is_reset, read_exactly, read_to_end, until
from ztunnel.events import EventKind

NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8
LAST_POSSIBLE = 2**31 - 1


def reset_tcp(peer: Hyper) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


def close_tcp(peer: Hyper) -> None:
    """A FIN without close_notify: what a killed process leaves."""
    plain = socket.socket(fileno=peer.socket.detach())
    plain.close()


def close_tls(peer: Hyper) -> None:
    """close_notify, then a FIN."""
    peer.socket.settimeout(1)
    try:
        peer.socket.unwrap().close()
    except (OSError, ValueError):
        peer.socket.close()


def goaway_and_close(peer: Hyper) -> None:
    peer.h2.close_connection()
    peer.flush()
    close_tls(peer)


Lose = Callable[[Hyper], None]
LOSSES = pytest.mark.parametrize("lose", [reset_tcp, close_tcp, close_tls, goaway_and_close])


# --- our client -----------------------------------------------------------------------------------------------------


@LOSSES
def test_exception_a_tunnel_lost_without_end_stream_is_a_reset(client: OurClient, lose: Lose) -> None:
    app, peer, stream = client.opened()
    peer.send(stream, b"part of a transfer")
    assert read_exactly(app, 18) == b"part of a transfer"
    lose(peer)
    assert is_reset(app)
    assert client.node.closed()[0] in (Reason.TUNNEL_LOST, Reason.RESET_UPSTREAM)


@LOSSES
def test_a_tunnel_lost_after_end_stream_is_a_clean_end(client: OurClient, lose: Lose) -> None:
    app, peer, stream = client.opened()
    app.sendall(b"q")
    app.shutdown(socket.SHUT_WR)
    peer.ended(stream)
    peer.send(stream, b"all of it", end=True)
    lose(peer)
    assert read_to_end(app) == b"all of it"
    assert client.node.closed()[0] is Reason.OK


def test_reset_before_end_stream_is_a_reset(client: OurClient) -> None:
    app, peer, stream = client.opened()
    peer.send(stream, b"part")
    peer.reset(stream, NO_ERROR)
    assert is_reset(app)
    assert client.node.closed()[0] is Reason.RESET_UPSTREAM


@pytest.mark.parametrize("code", [NO_ERROR, CANCEL])
def test_reset_after_end_stream_is_harmless(client: OurClient, code: int) -> None:
    app, peer, stream = client.opened()
    app.sendall(b"q")
    app.shutdown(socket.SHUT_WR)
    peer.ended(stream)
    peer.send(stream, b"x" * 300_000, end=True)
    peer.raw(RstStreamFrame(stream, error_code=code).serialize())
    assert read_to_end(app) == b"x" * 300_000
    assert client.node.closed()[0] is Reason.OK
    other, again = client.next_stream(peer)
    peer.send(again, b"alive")
    assert read_exactly(other, 5) == b"alive"


def test_reset_after_their_end_stream_while_we_still_send_delivers_what_they_sent(client: OurClient) -> None:
    app, peer, stream = client.opened()
    peer.send(stream, b"early answer", end=True)
    peer.raw(RstStreamFrame(stream, error_code=NO_ERROR).serialize())
    assert read_to_end(app) == b"early answer"


def test_a_whole_answer_and_then_a_reset_is_delivered_while_we_still_send(client: OurClient) -> None:
    """RFC 9113 section 8.1, and what Envoy does by default when the application behind it has ended."""
    app, peer, stream = client.opened()
    peer.ping()
    app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    app.sendall(b"x" * 100_000)
    size = 3 << 20  # more than the kernel holds for a reader that is late, less than the stream's window
    peer.send(stream, b"y" * size, end=True)
    peer.raw(RstStreamFrame(stream, error_code=NO_ERROR).serialize())
    peer.ping()
    app.sendall(b"x" * 100_000)
    assert read_exactly(app, size) == b"y" * size


def test_our_application_resets_and_the_peer_hears_a_reset(client: OurClient) -> None:
    app, peer, stream = client.opened()
    app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    app.close()
    assert peer.reset_code(stream) == CANCEL
    assert not any(isinstance(event, h2.events.StreamEnded) for event in peer.seen)
    assert client.node.closed()[0] is Reason.RESET_DOWNSTREAM


def test_goaway_from_the_peer_opens_no_stream_there_and_open_ones_finish(client: OurClient) -> None:
    app, old, stream = client.opened()
    old.raw(GoAwayFrame(0, last_stream_id=stream).serialize())
    old.ping()
    other = client.app()
    new = client.accept()
    fresh, _ = new.accept_request()
    new.answer(fresh, 200)
    new.send(fresh, b"new tunnel")
    assert read_exactly(other, 10) == b"new tunnel"
    app.sendall(b"still here")
    assert old.read(stream, 10) == b"still here"
    app.shutdown(socket.SHUT_WR)
    old.ended(stream)
    old.send(stream, b"done", end=True)
    assert read_to_end(app) == b"done"
    old.until_over()  # we close what the peer has given up
    assert not any(isinstance(event, h2.events.RequestReceived) for event in old.seen)


def test_graceful_goaway_in_two_phases_loses_nothing(client: OurClient) -> None:
    app, old, stream = client.opened()
    old.raw(GoAwayFrame(0, last_stream_id=LAST_POSSIBLE).serialize())
    old.ping()
    old.raw(GoAwayFrame(0, last_stream_id=stream).serialize())
    old.send(stream, b"done", end=True)
    assert read_to_end(app) == b"done"


def test_a_stream_that_goaway_says_was_never_looked_at_is_tried_on_another_tunnel(client: OurClient) -> None:
    app = client.app()
    old = client.accept()
    old.accept_request()
    old.raw(GoAwayFrame(0, last_stream_id=0).serialize())
    new = client.accept()
    stream, headers = new.accept_request()
    assert dict(headers)[":authority"] == client.authority
    new.answer(stream, 200)
    new.send(stream, b"second try")
    assert read_exactly(app, 10) == b"second try"


def test_a_refused_stream_is_tried_once_more(client: OurClient) -> None:
    app = client.app()
    peer = client.accept()
    stream, _ = peer.accept_request()
    peer.reset(stream, REFUSED_STREAM)
    again, _ = peer.accept_request()
    peer.answer(again, 200)
    peer.send(again, b"x")
    assert read_exactly(app, 1) == b"x"


def test_a_peer_that_goes_silent_is_found_by_ping(client_credential: Credential, server_credential: Credential) -> None:
    with our_client(client_credential, server_credential, ping_interval_ms=100, ping_timeout_ms=300) as client:
        app, _, _ = client.opened()
        assert is_reset(app)  # the peer reads nothing from here on
        assert client.node.closed()[0] is Reason.TUNNEL_LOST


@LOSSES
def test_a_tunnel_lost_under_several_requests_is_dialled_once_more(client: OurClient, lose: Lose) -> None:
    apps = [client.app()]
    old = client.accept()
    old.accept_request()
    for _ in range(2):
        apps.append(client.app())
        old.accept_request()
    lose(old)
    new = client.accept()
    for _ in apps:
        stream, _ = new.accept_request()
        new.answer(stream, 200)
        new.send(stream, b"second try", end=True)
    assert [read_to_end(app) for app in apps] == [b"second try"] * 3
    assert client.node.stats().tunnels_opened[0] == 2


def test_connections_that_come_before_the_first_tunnel_is_up_share_it(client: OurClient) -> None:
    apps = [client.app() for _ in range(5)]
    peer = client.accept()
    for _ in apps:
        stream, _ = peer.accept_request()
        peer.answer(stream, 200)
        peer.send(stream, b"hello", end=True)
    assert [read_to_end(app) for app in apps] == [b"hello"] * 5
    assert client.node.stats().tunnels_opened[0] == 1


# --- our server -----------------------------------------------------------------------------------------------------


@LOSSES
def test_a_tunnel_of_a_client_lost_without_end_stream_is_a_reset(server: OurServer, lose: Lose) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        peer.send(stream, b"part of an upload")
        assert read_exactly(app, 17) == b"part of an upload"
        lose(peer)
        assert is_reset(app)
    assert server.node.closed()[0] in (Reason.TUNNEL_LOST, Reason.RESET_DOWNSTREAM)


def test_a_clients_reset_reaches_the_application_as_a_reset(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        peer.send(stream, b"part")
        peer.reset(stream)
        assert is_reset(app)
    assert server.node.closed()[0] is Reason.RESET_DOWNSTREAM


def test_the_applications_reset_reaches_the_client_as_rst_stream(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    app = accept(server.app)
    assert peer.status(stream) == 200
    app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    app.close()
    assert peer.reset_code(stream) == CANCEL
    assert not any(isinstance(event, h2.events.StreamEnded) for event in peer.seen)
    assert server.node.closed()[0] is Reason.RESET_UPSTREAM


def test_a_clients_reset_after_its_end_stream_still_delivers_its_bytes(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        peer.send(stream, b"x" * 300_000, end=True)
        peer.raw(RstStreamFrame(stream, error_code=NO_ERROR).serialize())
        assert read_to_end(app) == b"x" * 300_000


def test_our_drain_is_a_goaway_in_two_phases_and_open_streams_finish(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        server.node.engine.drain(5.0)
        notice = peer.wait(h2.events.ConnectionTerminated)
        assert (notice.error_code, notice.last_stream_id) == (NO_ERROR, LAST_POSSIBLE)
        goaway = peer.wait(h2.events.ConnectionTerminated)
        assert (goaway.error_code, goaway.last_stream_id) == (NO_ERROR, stream)
        app.sendall(b"to the end")
        assert peer.read(stream, 10) == b"to the end"
    peer.ended(stream)


def test_a_drain_that_takes_too_long_ends_in_a_reset_never_in_a_clean_end(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        server.node.engine.drain(0.5)
        assert is_reset(app)
    peer.until_over()
    assert not any(isinstance(event, h2.events.StreamEnded) for event in peer.seen)
    assert server.node.closed()[0] is Reason.DRAINED
    server.node.event(EventKind.DRAINED)
    assert server.node.stats().tunnels_open == 0


def test_a_drained_node_takes_no_new_tunnel(server: OurServer) -> None:
    server.node.engine.drain(5.0)
    server.node.event(EventKind.DRAINED)
    with pytest.raises(OSError):
        server.peer()


def test_a_client_that_goes_silent_is_found_by_ping(
    server_credential: Credential, client_credential: Credential
) -> None:
    with our_server(server_credential, client_credential, ping_interval_ms=100, ping_timeout_ms=300) as server:
        peer = server.peer()
        peer.connect(server.authority)
        with accept(server.app) as app:
            assert is_reset(app)
        assert server.node.closed()[0] is Reason.TUNNEL_LOST
        until(lambda: server.node.stats().tunnels_open == 0, "the silent tunnel is gone")
