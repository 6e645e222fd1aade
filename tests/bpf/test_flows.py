"""Figures per edge: what the kernel counted equals what was sent, whichever way a connection ended."""

import ctypes
import errno
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from bpf import kernel
from bpf.layout import CEdge, CEdgeStats
from bpf.plane import Counter, Direction, EdgeKey, EdgeStats, Failure, FlowFlag, Note, NoteKind, Plane
from bpf.plane import possible_cpus as cpus
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import PORT, accepted, count, dial
from tests.bpf.topology import Place, Topology

RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def edge(plane: Plane) -> Callable[[Direction], EdgeKey]:
    """A fresh edge from workload 11 to 22, empty in every direction."""
    plane.remove_edges(EdgeKey(11, 22, direction) for direction in Direction)
    return lambda direction: EdgeKey(11, 22, direction)


def upstream(plane: Plane, pod: Place, kind: NoteKind, direction: Direction) -> socket.socket:
    """A socket of ztunnel's, counted from its connect on."""
    sock = pod.socket()
    note = Note(kind, pod.address4, 999, netns=pod.cookie, direction=direction, source=11, destination=22)
    plane.put_note(sock, note)
    return sock


def drained(sock: socket.socket) -> int:
    """Read to the end."""
    total = 0
    while data := sock.recv(1 << 16):
        total += len(data)
    return total


def settled(plane: Plane, key: EdgeKey, closed: int = 1) -> EdgeStats:
    """The figures once `closed` connections have ended: the last ACK may still be on its way."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        stats = plane.edges().get(key)
        if stats is not None and stats.closed >= closed:
            return stats
    raise AssertionError(f"not closed in time: {plane.edges().get(key)}")


End = Callable[[socket.socket, socket.socket], None]


def dialler_first(ours: socket.socket, theirs: socket.socket) -> None:
    ours.close()
    drained(theirs)
    theirs.close()


def acceptor_first(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.close()
    drained(ours)
    ours.close()


def half_close_then_end(ours: socket.socket, theirs: socket.socket) -> None:
    ours.shutdown(socket.SHUT_WR)
    drained(theirs)
    theirs.close()
    drained(ours)
    ours.close()


def reset_by_acceptor(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    theirs.close()
    with pytest.raises(ConnectionResetError):
        drained(ours)
    ours.close()


def reset_by_dialler(ours: socket.socket, theirs: socket.socket) -> None:
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ours.close()


def reset_after_half_close(ours: socket.socket, theirs: socket.socket) -> None:
    """FIN_WAIT2 ends by a reset: no FIN was received."""
    ours.shutdown(socket.SHUT_WR)
    drained(theirs)
    reset_by_acceptor(ours, theirs)


def reset_of_a_half_closed_peer(ours: socket.socket, theirs: socket.socket) -> None:
    """CLOSE_WAIT ends by a reset: a FIN was received, none was sent."""
    theirs.shutdown(socket.SHUT_WR)
    drained(ours)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ours.close()


ENDS = [
    dialler_first,
    acceptor_first,
    half_close_then_end,
    reset_by_acceptor,
    reset_by_dialler,
    reset_after_half_close,
    reset_of_a_half_closed_peer,
]


def exchange(ours: socket.socket, theirs: socket.socket, there: int, back: int) -> None:
    """`there` bytes one way, then `back` the other, all read."""
    for sender, receiver, size in ((ours, theirs, there), (theirs, ours, back)):
        left = size
        while left:
            on_the_way = sender.send(bytes(min(left, 1 << 15)))
            left -= on_the_way
            while on_the_way:
                got = len(receiver.recv(on_the_way))
                assert got
                on_the_way -= got


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("there", "back"), [(0, 0), (1, 0), (1000, 3), (200_000, 70_001)])
def test_bytes_of_a_dialled_socket_are_the_payload(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey], end: End, there: int, back: int
) -> None:
    with net.a.listen("10.77.1.1", PORT) as server, ExitStack() as stack:
        ours = stack.enter_context(upstream(plane, net.a, NoteKind.CLIENT, Direction.INBOUND))
        ours.connect(("10.77.1.1", PORT))
        theirs = stack.enter_context(accepted(server))
        exchange(ours, theirs, there, back)
        end(ours, theirs)
        stats = settled(plane, edge(Direction.INBOUND))
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (1, 1, there, back)
    assert sum(stats.failed.values()) == 0


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("there", "back"), [(0, 0), (1000, 3), (200_000, 70_001)])
def test_bytes_of_an_accepted_socket_go_from_source_to_destination(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey], end: End, there: int, back: int
) -> None:
    """The application is the source: what ztunnel receives on its end is what was sent."""
    with ExitStack() as stack:
        app = stack.enter_context(dial(net.a, "10.77.2.1"))
        ours = stack.enter_context(accepted(ztunnel.outbound4))
        label(plane, ours)
        exchange(app, ours, there, back)
        end(app, ours)
        stats = settled(plane, edge(Direction.OUTBOUND))
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (1, 1, there, back)


def label(plane: Plane, sock: socket.socket) -> None:
    """What ztunnel does once it has decided."""
    note = plane.note(sock)
    assert note is not None
    plane.put_note(
        sock,
        Note(
            note.kind,
            note.address,
            note.port,
            note.netns,
            direction=Direction.OUTBOUND,
            source=11,
            destination=22,
            cookie=note.cookie,
        ),
    )


def test_decision_that_comes_after_the_end_of_the_request_loses_nothing(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4) as ours:
        app.sendall(bytes(500))
        app.shutdown(socket.SHUT_WR)
        assert drained(ours) == 500
        label(plane, ours)
        ours.sendall(bytes(70))
        ours.close()
        assert drained(app) == 70
        stats = settled(plane, edge(Direction.OUTBOUND))
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (1, 1, 500, 70)


def test_note_rewritten_on_the_way_doubles_nothing(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4) as ours:
        for _ in range(5):
            label(plane, ours)
            exchange(app, ours, 100, 50)
        dialler_first(app, ours)
        stats = settled(plane, edge(Direction.OUTBOUND))
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (1, 1, 500, 250)


def test_connection_without_a_direction_is_not_counted(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    before = {key: stats.opened for key, stats in plane.edges().items()}
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4) as ours:
        exchange(app, ours, 100, 50)
        dialler_first(app, ours)
    assert {key: stats.opened for key, stats in plane.edges().items()} == before


def test_tunnel_sockets_have_an_edge_of_their_own(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    with net.out.listen("10.77.9.1", 15008) as server, ExitStack() as stack:
        ours = stack.enter_context(upstream(plane, net.a, NoteKind.OWN, Direction.TUNNEL))
        ours.connect(("10.77.9.1", 15008))
        theirs = stack.enter_context(accepted(server))
        exchange(ours, theirs, 10, 20)
        dialler_first(ours, theirs)
        stats = settled(plane, edge(Direction.TUNNEL))
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (1, 1, 10, 20)
    assert edge(Direction.OUTBOUND) not in plane.edges()


def test_connect_latency_and_rtt_are_observed_once(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    assert net.out.command("tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "20ms").returncode in (0, 2)
    is_delayed = "netem" in net.out.command("tc", "qdisc", "show", "dev", "eth0").stdout
    try:
        with net.out.listen("10.77.9.1", 15008) as server, ExitStack() as stack:
            ours = stack.enter_context(upstream(plane, net.a, NoteKind.OWN, Direction.TUNNEL))
            start = time.monotonic()
            ours.connect(("10.77.9.1", 15008))
            took_us = (time.monotonic() - start) * 1e6
            theirs = stack.enter_context(accepted(server))
            exchange(ours, theirs, 10, 20)
            dialler_first(ours, theirs)
            stats = settled(plane, edge(Direction.TUNNEL))
    finally:
        net.out.command("tc", "qdisc", "del", "dev", "eth0", "root")
    assert sum(stats.connect_us) == 1
    assert 0 < stats.connect_us_sum <= took_us
    assert stats.connect_us[max(stats.connect_us_sum.bit_length() - 1, 0)] == 1
    assert sum(stats.rtt_us) == 1
    assert stats.rtt_us[max(stats.rtt_us_sum.bit_length() - 1, 0)] == 1
    if is_delayed:
        assert stats.connect_us_sum >= 19_000


def test_open_connection_reaches_its_edge_within_a_second_of_traffic(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4) as ours:
        label(plane, ours)
        exchange(app, ours, 1000, 500)
        stats = plane.edges()[edge(Direction.OUTBOUND)]
        assert (stats.opened, stats.closed) == (1, 0)
        time.sleep(1.05)
        exchange(app, ours, 1, 1)
        stats = plane.edges()[edge(Direction.OUTBOUND)]
        flow = plane.flow(ours)
        assert flow is not None
        assert flow.is_opened
        assert not flow.flags & FlowFlag.ACTIVE
        # The socket's own view: it sent the answer. What the last exchange added waits for the next sample.
        assert (flow.received, flow.sent) == (stats.sent, stats.received)
        assert (stats.sent, stats.received) in ((1000, 500), (1001, 500), (1001, 501))
        dialler_first(app, ours)
        stats = settled(plane, edge(Direction.OUTBOUND))
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (1, 1, 1001, 501)


def test_refused_capture_is_a_failure_of_the_applications_edge(
    net: Topology, plane: Plane, pod: Place, edge: Callable[[Direction], EdgeKey]
) -> None:
    plane.put_workload(net.a.address4, 11)
    plane.put_workload(net.b.address4, 22)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            dial(net.a, "10.77.2.1")
    stats = plane.edges()[edge(Direction.OUTBOUND)]
    assert stats.failed[Failure.REFUSED] == 3
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (0, 0, 0, 0)


def test_captured_connection_that_works_is_not_counted_at_the_applications_end(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    plane.put_workload(net.a.address4, 11)
    plane.put_workload(net.b.address4, 22)
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4) as ours:
        exchange(app, ours, 1000, 500)
        dialler_first(app, ours)
    assert edge(Direction.OUTBOUND) not in plane.edges()


def test_refused_upstream_is_told_apart_from_timeout_and_abort(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    def attempt(address: str, timeout: float, retries: int) -> None:
        with upstream(plane, net.a, NoteKind.OWN, Direction.TUNNEL) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, retries)
            sock.settimeout(timeout)
            with pytest.raises(OSError):  # which one is what the figures must tell
                sock.connect((address, 9999))

    def failed() -> dict[Failure, int]:
        return dict(plane.edges()[edge(Direction.TUNNEL)].failed)

    attempt("10.77.9.1", 3, 1)
    assert failed() == {Failure.REFUSED: 1, Failure.TIMEOUT: 0, Failure.ABORTED: 0, Failure.DENIED: 0}
    dropped = net.out.command(
        "nft", "table ip cvb { chain in { type filter hook input priority 0; tcp dport 9999 drop; }; }"
    )
    assert dropped.returncode == 0, dropped.stderr
    try:
        attempt("10.77.9.1", 0.1, 6)
        assert failed() == {Failure.REFUSED: 1, Failure.TIMEOUT: 0, Failure.ABORTED: 1, Failure.DENIED: 0}
        attempt("10.77.9.1", 1.5, 6)
        assert failed() == {Failure.REFUSED: 1, Failure.TIMEOUT: 1, Failure.ABORTED: 1, Failure.DENIED: 0}
    finally:
        net.out.command("nft", "delete table ip cvb")
    stats = plane.edges()[edge(Direction.TUNNEL)]
    assert (stats.opened, stats.closed) == (0, 0)


def test_reused_socket_is_counted_anew(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    """Disconnected by AF_UNSPEC and connected again, as some pools do."""
    libc = ctypes.CDLL(None, use_errno=True)
    with net.out.listen("10.77.9.1", 15008) as server, ExitStack() as stack:
        ours = stack.enter_context(upstream(plane, net.a, NoteKind.OWN, Direction.TUNNEL))
        for _ in range(2):
            ours.connect(("10.77.9.1", 15008))
            theirs = stack.enter_context(accepted(server))
            exchange(ours, theirs, 100, 10)
            assert libc.connect(ours.fileno(), bytes(16), 16) == 0
        stats = settled(plane, edge(Direction.TUNNEL), 2)
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (2, 2, 200, 20)


def test_many_connections_add_up(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    with net.a.listen("10.77.1.1", PORT) as server:
        for index in range(100):
            with upstream(plane, net.a, NoteKind.CLIENT, Direction.INBOUND) as ours:
                ours.connect(("10.77.1.1", PORT))
                with accepted(server) as theirs:
                    exchange(ours, theirs, index, 2 * index)
                    ENDS[index % len(ENDS)](ours, theirs)
        stats = settled(plane, edge(Direction.INBOUND), 100)
    assert (stats.opened, stats.closed, stats.sent, stats.received) == (100, 100, 4950, 9900)
    assert sum(stats.connect_us) == 100


def closed(fd: int, key: EdgeKey) -> int:
    """One figure of one edge, without reading all of them."""
    size = len(bytes(CEdgeStats()))
    raw = kernel.map_lookup(fd, key.pack(), size * cpus())
    assert raw is not None
    return sum(CEdgeStats.from_buffer_copy(raw, cpu * size).closed for cpu in range(cpus()))


def filled(fd: int, key: bytes, value: bytes) -> bool:
    """Put an entry; False when the map is full. The allocator's reserve may need a moment to be refilled."""
    for _ in range(1000):
        try:
            kernel.map_update(fd, key, value)
        except OSError as error:
            if error.errno == errno.E2BIG:
                return False
            time.sleep(0.001)
        else:
            return True
    raise AssertionError("the allocator does not recover")


@pytest.mark.slow
def test_overflow_is_counted_on_the_unknown_edge(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    fd = plane.map_fd("edges")
    zeros = bytes(len(bytes(CEdgeStats())) * cpus())
    fillers = [bytes(CEdge(source=1 << 20 | index, destination=1, direction=3)) for index in range(65536)]
    overflow = count(plane, Counter.EDGE_OVERFLOW)
    unknown = EdgeKey(0, 0, Direction.INBOUND)
    before = plane.edges()[unknown]
    put = 0
    try:
        for filler in fillers:
            if not filled(fd, filler, zeros):
                break
            put += 1
        with net.a.listen("10.77.1.1", PORT) as server:
            ours = upstream(plane, net.a, NoteKind.CLIENT, Direction.INBOUND)
            ours.connect(("10.77.1.1", PORT))
            theirs = accepted(server)
            exchange(ours, theirs, 100, 10)
            dialler_first(ours, theirs)
        deadline = time.monotonic() + 3
        while closed(fd, unknown) == before.closed:
            assert time.monotonic() < deadline
        assert count(plane, Counter.EDGE_OVERFLOW) > overflow
    finally:
        for filler in fillers[:put]:
            kernel.map_delete(fd, filler)
    after = plane.edges()[unknown]
    assert (after.opened - before.opened, after.closed - before.closed) == (1, 1)
    assert (after.sent - before.sent, after.received - before.received) == (100, 10)
    assert edge(Direction.INBOUND) not in plane.edges()
