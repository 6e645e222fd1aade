"""The note's way from connect to accept, and that nothing is left of connections that never got there."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from bpf import kernel
from bpf.layout import CNote, CTuple
from bpf.plane import Counter, Direction, Note, NoteKind, Plane, PodFlag
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import PORT, accepted, as_client, count, dial
from tests.bpf.topology import Place, Topology

PASSED = 7100


def refused_connects(place: Place, number: int, address: str = "10.77.2.1") -> int:
    """How many of `number` blocking connects were refused."""

    def run() -> int:
        refused = 0
        for index in range(number):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                sock.connect((address, 1 + index % 60000))
            except ConnectionRefusedError:
                refused += 1
            finally:
                sock.close()
        return refused

    return place.run(run)


def test_500_refused_connects_leave_no_key(net: Topology, plane: Plane, pod: Place) -> None:
    dropped = count(plane, Counter.CARRY_DROPPED)
    assert refused_connects(pod, 250) == 250
    assert refused_connects(pod, 250, "fd77:2::1") == 250
    assert plane.in_flight() == 0
    assert count(plane, Counter.CARRY_DROPPED) == dropped + 500


@pytest.mark.slow
def test_100000_refused_connects_leave_no_key(net: Topology, plane: Plane, pod: Place) -> None:
    full = count(plane, Counter.CARRY_FULL)
    assert refused_connects(pod, 100_000) == 100_000
    assert plane.in_flight() == 0
    assert count(plane, Counter.CARRY_FULL) == full


def test_direct_dial_to_15001_from_a_port_that_was_refused_has_no_note(net: Topology, plane: Plane, pod: Place) -> None:
    with pod.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 42000))
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("10.77.2.1", PORT))
    ztunnel = Ztunnel(plane, pod)
    try:
        for loopback in ("127.0.0.1", "127.1.2.3"):
            with pod.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", 42000))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.connect((loopback, 15001))
                with accepted(ztunnel.outbound4) as peer:
                    assert plane.note(peer) is None
    finally:
        ztunnel.close()


def unanswered(plane: Plane, pod: Place, stack: ExitStack) -> list[socket.socket]:
    """Non-blocking connects towards a listener whose queue is full: the last ones' SYNs stay unanswered."""
    own = stack.enter_context(pod.socket())
    plane.put_note(own, Note(NoteKind.OWN))
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    own.bind(("0.0.0.0", 15001))
    own.listen(0)
    waiting = []
    for _ in range(6):
        sock = stack.enter_context(pod.socket())
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(("10.77.2.1", PORT))
        waiting.append(sock)
    return waiting


def test_key_that_another_socket_published_is_not_withdrawn(net: Topology, plane: Plane, pod: Place) -> None:
    fd = plane.map_fd("inflight")
    with ExitStack() as stack:
        waiting = unanswered(plane, pod, stack)
        keys = [key for key, _ in kernel.map_batch(fd, len(bytes(CTuple())), len(bytes(CNote())))]
        assert keys
        for key in keys:
            kernel.map_update(fd, key, Note(NoteKind.CAPTURED, cookie=1).pack())
            stack.callback(kernel.map_delete, fd, key)
        for sock in waiting:
            sock.close()
        assert plane.in_flight() == len(keys)
    assert plane.in_flight() == 0


def test_connector_that_gives_up_takes_its_key_along(net: Topology, plane: Plane, pod: Place) -> None:
    with ExitStack() as stack:
        waiting = unanswered(plane, pod, stack)
        assert plane.in_flight() > 0
        for sock in waiting:
            sock.close()
        assert plane.in_flight() == 0


def test_owner_of_another_cookie_keeps_its_key(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """Two connections in a row over the same 4-tuple: the end of the first does not touch the second's note."""
    for _ in range(20):
        with net.a.socket() as app:
            app.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            app.bind(("127.0.0.1", 42001))
            app.connect(("10.77.2.1", PORT))
            with accepted(ztunnel.outbound4) as sock:
                note = plane.note(sock)
                assert note is not None
                assert note.kind is NoteKind.ACCEPTED


def test_full_map_is_counted_and_the_acceptor_has_no_note(
    net: Topology, plane: Plane, ztunnel: Ztunnel, key: str
) -> None:
    """What ztunnel refuses as a connection that nobody captured: closed, never in clear."""
    fd = plane.map_fd("inflight")
    blockers = [struct.pack("=Q40x", 1 << 40 | index) for index in range(65536)]
    full = count(plane, Counter.CARRY_FULL)
    try:
        for blocker in blockers:
            kernel.map_update(fd, blocker, bytes(CNote()))
        with dial(net.a, "10.77.2.1"), accepted(ztunnel.outbound4) as sock:
            assert plane.note(sock) is None
        assert count(plane, Counter.CARRY_FULL) == full + 1
    finally:
        for blocker in blockers:
            kernel.map_delete(fd, blocker)
    assert plane.in_flight() == 0


def test_one_pod_cannot_take_the_room_of_others(net: Topology, plane: Plane, pod: Place, ztunnel: Ztunnel) -> None:
    """A pod that leaves its own connects unanswered (a rule on its own `lo`) fills its share, and no more."""
    fd = plane.map_fd("unanswered")
    key = struct.pack("=Q", net.a.cookie)
    refused = count(plane, Counter.CARRY_POD_FULL)
    kernel.map_update(fd, key, struct.pack("=i", 8192))
    try:
        with dial(net.a, "10.77.2.1"), accepted(ztunnel.outbound4) as sock:
            assert plane.note(sock) is None, "refused as a connection that nobody captured"
        assert count(plane, Counter.CARRY_POD_FULL) == refused + 1
    finally:
        kernel.map_delete(fd, key)
    with dial(net.a, "10.77.2.1"), accepted(ztunnel.outbound4) as sock:
        assert plane.note(sock) is not None


def held(plane: Plane, place: Place) -> int:
    raw = kernel.map_lookup(plane.map_fd("unanswered"), struct.pack("=Q", place.cookie), 4)
    return 0 if raw is None else int(struct.unpack("=i", raw)[0])


def test_the_pods_share_is_given_back(net: Topology, plane: Plane, pod: Place) -> None:
    with ExitStack() as stack:
        waiting = unanswered(plane, pod, stack)
        assert 0 < held(plane, pod) == plane.in_flight()
        for sock in waiting[:3]:
            sock.close()
        assert held(plane, pod) == plane.in_flight()
    assert held(plane, pod) == plane.in_flight() == 0


def test_notes_of_200_parallel_connections_do_not_mix(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with ExitStack() as stack:
        apps = {}
        for index in range(200):
            app = stack.enter_context(net.a.socket())
            app.setblocking(False)
            with suppress(BlockingIOError):
                app.connect(("10.77.2.1", PORT + index))
            apps[plane.note(app).cookie] = PORT + index  # type: ignore[union-attr]
        for _ in range(200):
            note = plane.note(stack.enter_context(accepted(ztunnel.outbound4)))
            assert note is not None
            assert apps.pop(note.cookie) == note.port
        assert not apps
    assert plane.in_flight() == 0


def test_client_note_reaches_the_application_and_leaves_no_key(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with (
        net.a.listen("10.77.1.1", PORT) as server,
        as_client(plane, net.a, "10.77.1.1", net.out.address4, 999),
        accepted(server) as sock,
    ):
        note = plane.note(sock)
        assert note is not None
        assert (note.kind, note.port) == (NoteKind.SERVED, 999)
    with pytest.raises(ConnectionRefusedError):
        as_client(plane, net.a, "10.77.1.1", net.out.address4, 999)
    assert plane.in_flight() == 0


def test_direction_is_of_ztunnels_socket_alone(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """The application's end of the same connection names its client, and is in no figure: it would count twice."""
    counted = Note(NoteKind.CLIENT, net.out.address4, 999, net.a.cookie, Direction.INBOUND, source=11, destination=22)
    with net.a.listen("10.77.1.1", PORT) as server, net.a.socket() as sock:
        plane.put_note(sock, counted)
        sock.connect(("10.77.1.1", PORT))
        with accepted(server) as peer:
            note = plane.note(peer)
            assert note is not None
            assert (note.kind, note.direction) == (NoteKind.SERVED, Direction.NONE)
            assert (note.source, note.destination) == (11, 22)


def test_note_does_not_reach_a_namespace_that_is_not_enrolled(net: Topology, plane: Plane, pod: Place) -> None:
    """Whatever a socket's note names as the acceptor's: applications outside of the mesh are told the truth."""
    with net.out.listen("10.77.9.1", PORT) as server, pod.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        plane.put_note(sock, Note(NoteKind.CLIENT, net.b.address4, 999, netns=net.out.cookie))
        sock.connect(("10.77.9.1", PORT))
        with accepted(server) as peer:
            assert plane.in_flight() == 1
            assert plane.note(peer) is None
            assert peer.getpeername()[0] == pod.ip4
            sock.close()
    assert plane.in_flight() == 0


def test_own_note_is_not_published(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    published = count(plane, Counter.CARRY_PUBLISHED)
    with net.a.listen("127.0.0.1", PASSED) as server, ztunnel.own() as sock:
        sock.connect(("127.0.0.1", PASSED))
        with accepted(server) as peer:
            assert plane.note(peer) is None
    assert count(plane, Counter.CARRY_PUBLISHED) == published


def test_note_rewritten_by_descriptor_replaces_the_old_one(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with dial(net.a, "10.77.2.1"), accepted(ztunnel.outbound4) as sock:
        note = plane.note(sock)
        assert note is not None
        changed = Note(note.kind, note.address, note.port, note.netns, source=5, destination=6, cookie=note.cookie)
        plane.put_note(sock, changed)
        assert plane.note(sock) == changed


def test_pod_unenrolled_between_connect_and_accept_leaves_no_key(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    app = dial(net.a, "10.77.2.1")
    plane.set_flags(net.a.cookie, PodFlag(0))
    with app, accepted(ztunnel.outbound4) as sock:
        assert plane.note(sock) is not None
    assert plane.in_flight() == 0


@pytest.fixture
def syn_cookies(net: Topology) -> Iterator[None]:
    """Every handshake in the pod through a cookie: no request socket remembers it."""
    assert net.a.command("sysctl", "-qw", "net.ipv4.tcp_syncookies=2").returncode == 0
    yield
    net.a.command("sysctl", "-qw", "net.ipv4.tcp_syncookies=1")


@pytest.mark.parametrize("address", ["10.77.2.1", "fd77:2::1"])
def test_note_survives_syn_cookies(
    net: Topology, plane: Plane, ztunnel: Ztunnel, syn_cookies: None, address: str
) -> None:
    with dial(net.a, address), accepted(ztunnel.outbound6 if ":" in address else ztunnel.outbound4) as sock:
        note = plane.note(sock)
        assert note is not None
        assert (note.kind, str(note.address)) == (NoteKind.ACCEPTED, address)
    assert plane.in_flight() == 0


def test_steering_and_probes_survive_syn_cookies(
    net: Topology, plane: Plane, ztunnel: Ztunnel, syn_cookies: None
) -> None:
    """sk_lookup runs again for the last segment of the handshake."""
    plane.set_node(net.node.cookie)
    with net.a.listen("10.77.1.1", PORT) as server:
        with dial(net.out, "10.77.1.1"), accepted(ztunnel.inbound):
            pass
        with dial(net.node, "10.77.1.1"), accepted(server):
            pass
