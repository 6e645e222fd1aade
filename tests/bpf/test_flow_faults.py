"""Figures of connections that fail, of how long they took, and of edges that no longer fit."""

import errno
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from bpf import kernel
from bpf.layout import CEdge, CEdgeStats
from bpf.plane import Counter, Direction, EdgeKey, Failure, NoteKind, Plane
from bpf.plane import possible_cpus as cpus
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import PORT, accepted, count, dial
from tests.bpf.flowing import dialler_first, exchange, settled, upstream
from tests.bpf.topology import Place, Topology


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
