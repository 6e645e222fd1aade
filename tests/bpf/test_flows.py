"""Figures per edge: what the kernel counted equals what was sent, whichever way a connection ended."""

import ctypes
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from bpf.plane import Direction, EdgeKey, FlowFlag, NoteKind, Plane
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import PORT, accepted, dial
from tests.bpf.flowing import ENDS, End, dialler_first, drained, exchange, label, settled, upstream
from tests.bpf.topology import Topology


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


def test_captured_connection_that_works_is_not_counted_at_the_applications_end(
    net: Topology, plane: Plane, ztunnel: Ztunnel, edge: Callable[[Direction], EdgeKey]
) -> None:
    plane.put_workload(net.a.address4, 11)
    plane.put_workload(net.b.address4, 22)
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4) as ours:
        exchange(app, ours, 1000, 500)
        dialler_first(app, ours)
    assert edge(Direction.OUTBOUND) not in plane.edges()


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
