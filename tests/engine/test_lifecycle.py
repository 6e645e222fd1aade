"""Publishing, draining, removing pods, and what is bounded."""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import h2.errors
import h2.events
import pytest

from mesh.reasons import Reason
from tests.engine.conftest import (
    CLIENT_ID,
    SERVER_ID,
    Pair,
    ServerNode,
    client_tables,
    close_client,
    close_server,
    deny_all,
    make_client,
    make_server,
    server_tables,
)
from tests.support.border import lib
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Authority, Credential
from tests.support.sockets import HBONE, connect, is_refused, is_reset, listen, new_ip, read_exactly, until


def test_a_policy_refuses_with_401_and_is_named(server: ServerNode, client_credential: Credential) -> None:
    server.engine.publish(deny_all(server_tables(server.ip), server.ip))
    peer = server.dial(client_credential)
    assert peer.status(peer.connect(server.authority)) == 401
    closed = server.engine.wait_closed()
    assert (closed.reason, closed.policy, closed.status) == (Reason.POLICY_DENIED, 50, 401)


def test_a_policy_applied_later_closes_what_it_denies(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    app = server.accept()
    server.engine.publish(deny_all(server_tables(server.ip), server.ip))
    assert peer.wait(h2.events.StreamReset).error_code == h2.errors.ErrorCodes.CANCEL
    assert is_reset(app)
    closed = server.engine.wait_closed()
    assert (closed.reason, closed.policy) == (Reason.POLICY_CHANGED, 50)


def test_publishing_the_same_again_disturbs_nobody(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    app = server.accept()
    for _ in range(50):
        server.engine.publish(server_tables(server.ip))
    peer.send(stream, b"still here")
    assert read_exactly(app, 10) == b"still here"


def test_a_connection_waits_for_its_pod_to_be_announced() -> None:
    app = listen(new_ip())
    node = make_client(None, app.getsockname(), hbone=False)
    capture = listen(new_ip())
    vip = capture.getsockname()
    assert not node.engine.add_pod(5, "later", CLIENT_ID, outbound=capture)
    with connect(vip) as near:
        near.sendall(b"x")
        tables = client_tables(node.pod_ip, vip[0], vip[1], app.getsockname(), hbone=False)
        node.engine.publish(tables.workload(3, "later", CLIENT_ID, new_ip()))
        far, _ = app.accept()
        assert read_exactly(far, 1) == b"x"
        far.close()
    close_client(node)
    app.close()


def test_a_pod_that_is_never_announced_is_refused() -> None:
    node = make_client(None, (new_ip(), 1), hbone=False, source_wait_ms=100)
    capture = listen(new_ip())
    vip = capture.getsockname()
    assert not node.engine.add_pod(5, "never", CLIENT_ID, outbound=capture)
    assert is_refused(lambda: connect(vip))
    assert node.engine.wait_closed().reason == Reason.UNKNOWN_SOURCE
    close_client(node)


def test_an_unknown_port_of_a_service_is_refused() -> None:
    node = make_client(None, (new_ip(), 1), hbone=False)
    capture = listen(node.vip)
    other_port = capture.getsockname()
    assert not node.engine.add_pod(5, "client", CLIENT_ID, outbound=capture)
    assert is_refused(lambda: connect(other_port))
    assert node.engine.wait_closed().reason == Reason.UNKNOWN_PORT
    close_client(node)


def test_removing_a_pod_cuts_everything_of_it(pair: Pair) -> None:
    near, far = pair.open()
    assert not pair.server.engine.remove_pod(1)
    assert pair.server.engine.wait_kind(lib.CV_EVENT_POD_REMOVED).pod == 1
    assert is_reset(near)
    assert is_reset(far)
    assert pair.server.engine.wait_closed().reason == Reason.POD_GONE
    with pytest.raises(ConnectionRefusedError):
        connect((pair.server.ip, HBONE))
    assert pair.server.engine.remove_pod(1) == -2


def test_a_drained_pod_takes_nothing_new_keeps_its_connections_and_may_come_again(pair: Pair) -> None:
    near, far = pair.open()
    assert not pair.server.engine.remove_pod(1, drain=True)
    assert not pair.client.engine.remove_pod(1, drain=True)
    for address in (pair.client.address, (pair.server.ip, HBONE)):
        with pytest.raises(ConnectionRefusedError):
            connect(address)
    near.sendall(b"alive")
    assert read_exactly(far, 5) == b"alive"
    ip = pair.server.ip
    assert not pair.server.engine.add_pod(2, "server", SERVER_ID, hbone=listen(ip, HBONE))
    connect((ip, HBONE)).close()
    near.sendall(b"still")
    assert read_exactly(far, 5) == b"still"


def test_what_waits_to_be_accepted_when_a_pod_is_drained_is_served(server: ServerNode) -> None:
    """Its listening socket may live on in another process, and nobody might look at what waits there."""
    again = listen(new_ip(), HBONE)
    waiting = [connect(again.getsockname()) for _ in range(100)]
    assert not server.engine.add_pod(7, "server", SERVER_ID, hbone=again)
    assert not server.engine.remove_pod(7, drain=True)
    for one in waiting:
        one.settimeout(0.01)
        with pytest.raises(TimeoutError):
            one.recv(1)
    for one in waiting:
        one.close()


def test_a_handshake_that_is_under_way_when_a_pod_is_drained_ends_well(
    server: ServerNode, client_credential: Credential
) -> None:
    early = connect((server.ip, HBONE))
    until(lambda: server.engine.stats().accepted > 0)
    assert not server.engine.remove_pod(1, drain=True)
    with tls_context(False, client_credential).wrap_socket(early) as peer:
        assert peer.recv(9)[3:4] == b"\x04", "SETTINGS, and with it the answer to what is asked meanwhile"


def raw_frames(peer: Hyper, until_data: bytes, app: socket.socket) -> list[tuple[int, tuple[int, int]]]:
    """Frames up to the DATA that the application sends after the second GOAWAY."""
    seen: list[tuple[int, tuple[int, int]]] = []
    held = b""
    while True:
        held += peer.socket.recv(1 << 16)
        while len(held) >= 9:
            length = int.from_bytes(held[:3], "big")
            kind, body = held[3], held[9 : 9 + length]
            held = held[9 + length :]
            if kind == 0 and body:
                assert body == until_data
                return seen
            seen.append((kind, struct.unpack(">II", body[:8]) if kind == 7 else (0, 0)))
            if [one for one, _ in seen].count(7) == 2 and app.fileno() >= 0:
                app.sendall(until_data)
                app.close()


def test_a_drain_lets_streams_finish_and_says_goaway_twice(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    app = server.accept()
    server.engine.drain(5000)
    # the library takes one GOAWAY for the end: read on by hand
    goaways = [body for kind, body in raw_frames(peer, until_data=b"last words", app=app) if kind == 7]
    assert goaways == [(2**31 - 1, 0), (stream, 0)]
    with pytest.raises(ConnectionRefusedError):
        connect((server.ip, HBONE))


def test_a_drain_ends_early_when_nothing_is_left(pair: Pair) -> None:
    near, far = pair.open()
    pair.server.engine.drain(60000)
    pair.client.engine.drain(60000)
    near.sendall(b"more")
    assert read_exactly(far, 4) == b"more"
    near.close()
    far.close()
    pair.client.engine.wait_kind(lib.CV_EVENT_DRAINED)
    pair.server.engine.wait_kind(lib.CV_EVENT_DRAINED)
    assert pair.server.engine.wait_closed().reason == Reason.OK


def test_a_drain_cuts_at_its_deadline(pair: Pair) -> None:
    near, far = pair.open()
    pair.server.engine.drain(100)
    pair.server.engine.wait_kind(lib.CV_EVENT_DRAINED)
    assert pair.server.engine.wait_closed().reason == Reason.DRAINED
    assert is_reset(near)
    assert is_reset(far)


def test_the_connections_of_a_pod_are_bounded(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"max_connections_per_pod": 3})
    open_ = [pair.open() for _ in range(3)]
    assert is_refused(pair.client.connect)
    assert pair.client.engine.wait_closed().reason == Reason.LIMIT_CONNECTIONS
    open_[0][0].close()
    open_[0][1].close()
    pair.client.engine.wait(lambda event: event.reason == Reason.OK and event.kind == lib.CV_EVENT_CLOSED)
    near, far = pair.open()
    near.sendall(b"again")
    assert read_exactly(far, 5) == b"again"


def test_streams_beyond_a_tunnels_bound_take_another(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"max_streams_per_tunnel": 4})
    ends = [pair.open() for _ in range(10)]
    assert pair.client.engine.stats().tunnels_opened[0] == 3
    for near, far in ends:
        near.close()
        far.close()
    until(lambda: pair.client.engine.stats().connections_open == 0)
    for _ in range(10):
        pair.open()
    assert pair.client.engine.stats().tunnels_opened[0] == 3, "room comes back"


def test_a_burst_dials_once(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    near = [pair.client.connect() for _ in range(50)]
    far = [pair.server.accept() for _ in range(50)]
    assert pair.client.engine.stats().tunnels_opened[0] == 1
    assert len(near) == len(far)


def test_open_connections_are_listed(pair: Pair) -> None:
    near, far = pair.open()
    near.sendall(b"12345")
    read_exactly(far, 5)
    (at_client,) = pair.client.engine.connections()
    (at_server,) = pair.server.engine.connections()
    assert (at_client.sent, at_server.sent) == (5, 5)
    assert (at_client.direction, at_server.direction) == (1, 2)


def test_an_application_that_leaves_while_it_waits_is_forgotten(server_credential: Credential) -> None:
    node = make_client(None, (new_ip(), 80), source_wait_ms=5000)
    near = node.connect()
    node.engine.wait_kind(3)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    near.close()
    assert node.engine.wait_closed().reason == Reason.RESET_DOWNSTREAM
    close_client(node)


def test_a_renewed_certificate_is_used_by_new_tunnels_and_old_streams_live(pair: Pair, authority: Authority) -> None:
    near, far = pair.open()
    assert not pair.client.engine.put_identity(CLIENT_ID, authority.issue(CLIENT_ID))
    second = pair.open()
    assert pair.client.engine.stats().tunnels_opened[0] == 2
    near.sendall(b"old")
    assert read_exactly(far, 3) == b"old"
    second[0].sendall(b"new")
    assert read_exactly(second[1], 3) == b"new"


def test_pods_and_numbers_are_checked(server: ServerNode) -> None:
    assert server.engine.add_pod(1, "server", SERVER_ID) == -17
    assert server.engine.add_pod(0, "server", SERVER_ID) == -17


@pytest.mark.slow
def test_connections_under_churn_leave_nothing_open(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"workers": 2}, {"workers": 2})

    def serve() -> None:
        for _ in range(400):
            far = pair.server.accept()
            far.sendall(far.recv(100))
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    for i in range(400):
        with connect((pair.client.vip, pair.client.port)) as near:
            near.sendall(b"%d" % i)
            assert near.recv(100) == b"%d" % i
            if i % 3 == 0:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    thread.join()
    until(lambda: pair.client.engine.stats().connections_open == 0)
    until(lambda: pair.server.engine.stats().connections_open == 0)
    assert pair.client.engine.stats().tunnels_opened[0] <= 2


def test_publishing_while_connections_come_and_go(server_credential: Credential, client_credential: Credential) -> None:
    node = make_server(server_credential, workers=2)
    client = make_client(client_credential, (node.ip, node.port), workers=2)
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            node.engine.publish(server_tables(node.ip))
            client.engine.publish(client_tables(client.pod_ip, client.vip, client.port, (node.ip, node.port)))

    thread = threading.Thread(target=publish)
    thread.start()
    for _ in range(100):
        with connect((client.vip, client.port)) as near:
            near.sendall(b"x")
            assert read_exactly(node.accept(), 1) == b"x"
    stop.set()
    thread.join()
    close_client(client)
    close_server(node)


def socket_of(descriptor: int) -> socket.socket:
    """A socket object for a duplicate of a descriptor; raises OSError if it is none."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def options_of(matches: Callable[[socket.socket], bool]) -> tuple[int, int, int]:
    """TCP_NODELAY, SO_KEEPALIVE and its idle time of the one socket of this process that matches."""
    found = {}  # by inode: a descriptor may be doubled for a moment, by this loop and by other threads
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket_of(int(entry.name)) as one:
            if one.type == socket.SOCK_STREAM and one.family == socket.AF_INET and matches(one):
                idle = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                no_delay = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                alive = one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                found[os.fstat(one.fileno()).st_ino] = no_delay, alive, idle
    (options,) = found.values()
    return options


def test_sockets_towards_other_machines_are_kept_alive(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"keepalive_s": 77}, {"keepalive_s": 77})
    near, far = pair.open()
    near.sendall(b"x")
    assert read_exactly(far, 1) == b"x", "all of them are set up"
    tunnel = (pair.server.ip, HBONE)
    accepted = options_of(lambda one: one.getpeername() == near.getsockname())
    assert accepted == (1, 1, 77), "what a listener hands on"
    assert options_of(lambda one: one.getpeername() == tunnel) == (1, 1, 77), "the client's end of the tunnel"
    assert options_of(lambda one: one.getsockname() == tunnel and bool(one.getpeername())) == (1, 1, 77)
    local = options_of(lambda one: one.getpeername() == far.getsockname())
    assert local[:2] == (1, 0), "an application in this kernel cannot vanish without a word"
