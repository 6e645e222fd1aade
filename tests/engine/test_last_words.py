"""A peer that breaks a rule, or asks, and leaves in the same breath: what is queued for it has nobody to go to."""

import contextlib
import socket
from collections.abc import Callable

import pytest

from mesh.reasons import Reason
from tests.engine.conftest import ServerNode, close_client, make_client
from tests.support.hyper import LEAVES, Hyper, frame, tls_context
from tests.support.pki import Credential
from tests.support.sockets import HBONE, is_reset, listen, new_ip, read_exactly, reset
from tests.support.stillness import one_moment

HEADERS, RST_STREAM, END_STREAM, END_HEADERS = 1, 3, 1, 4


def request(peer: Hyper, authority: str, end: bool = False) -> bytes:
    """A CONNECT that is not sent."""
    peer.h2.send_headers(
        peer.h2.get_next_available_stream_id(), [(":method", "CONNECT"), (":authority", authority)], end
    )
    return peer.h2.data_to_send()


SAID: dict[str, Callable[[int], bytes]] = {
    "a violation": lambda stream: frame(HEADERS, END_HEADERS, stream),
    "a reset": lambda stream: frame(RST_STREAM, 0, stream, (8).to_bytes(4)),
}
ASKED: dict[str, Callable[[ServerNode, Hyper], bytes]] = {
    "a refused request": lambda node, peer: request(peer, f"{node.ip}:1"),
    "a misdirected request": lambda _node, peer: request(peer, "203.0.113.1:80"),
    "a misdirected request that ended": lambda _node, peer: request(peer, "203.0.113.1:80", end=True),
    "a request": lambda node, peer: request(peer, node.authority),
    "a hundred requests and violations": lambda node, peer: b"".join(
        request(peer, node.authority) + SAID["a violation"](stream) for stream in range(3, 203, 2)
    ),
}


@pytest.mark.parametrize("breath", [*SAID, *ASKED])
@pytest.mark.parametrize("waiting", [b"", bytes(1 << 20)], ids=["idle", "with much to say"])
def test_what_a_client_says_before_it_leaves(
    server: ServerNode, client_credential: Credential, breath: str, waiting: bytes
) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    app = server.accept()
    if waiting:
        app.send(waiting, socket.MSG_DONTWAIT)
    peer.last_words(SAID[breath](stream) if breath in SAID else ASKED[breath](server, peer))
    assert is_reset(app)
    assert server.engine.wait_closed().reason != Reason.OK
    other = server.dial(client_credential)
    assert other.status(other.connect(server.authority)) == 200


@pytest.mark.parametrize("breath", ["a violation", "a reset"])
def test_what_a_server_says_before_it_leaves(
    server_credential: Credential, client_credential: Credential, breath: str
) -> None:
    ip = new_ip()
    with listen(ip, HBONE) as listener, contextlib.ExitStack() as stack:
        node = make_client(client_credential, (ip, 7001))
        stack.callback(close_client, node)
        for _ in range(2):  # the second: it goes on
            near = node.connect()
            with Hyper.accept(listener, tls_context(True, server_credential)) as peer:
                stream, _ = peer.accept_request()
                peer.answer(stream, 200)
                peer.last_words(SAID[breath](stream))
            assert is_reset(near)
            assert node.engine.wait_closed().reason != Reason.OK


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("act", ["connects", "writes", "ends", "resets"])
@pytest.mark.parametrize("first", ["application", "peer"])
def test_an_application_acts_in_the_moment_in_which_its_tunnel_ends(
    server_credential: Credential, client_credential: Credential, leave: str, act: str, first: str
) -> None:
    """As when a node goes on that hung for a while: its peers gave it up, its pods did not."""
    ip = new_ip()
    context = tls_context(True, server_credential)
    with listen(ip, HBONE) as listener, contextlib.ExitStack() as stack:
        node = make_client(client_credential, (ip, 7001))
        stack.callback(close_client, node)
        near = node.connect()
        peer = stack.enter_context(Hyper.accept(listener, context))
        stream, _ = peer.accept_request()
        peer.answer(stream, 200)
        peer.send(stream, b"up")
        assert read_exactly(near, 2) == b"up"
        acts: dict[str, Callable[[], object]] = {
            "connects": node.connect,
            "writes": lambda: near.send(bytes(100_000), socket.MSG_DONTWAIT),
            "ends": lambda: near.shutdown(socket.SHUT_WR),
            "resets": lambda: reset(near),
        }
        order = (acts[act], lambda: peer.leave(leave))
        with one_moment():
            for do in order if first == "application" else reversed(order):
                do()
        assert node.engine.wait_closed().reason != Reason.OK
        if act == "connects":  # it is not lost with the tunnel: there is another
            peer = stack.enter_context(Hyper.accept(listener, context))
            stream, _ = peer.accept_request()
            peer.answer(stream, 200)
            peer.send(stream, b"up")
            assert read_exactly(node.open[-1], 2) == b"up"
