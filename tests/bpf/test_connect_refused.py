"""Connects of a pod that can neither be captured nor may leave in clear: refused, with a reason that is counted."""

import errno
import os
import socket
import sys
from collections.abc import Iterator

import pytest

from bpf.plane import Counter, Direction, EdgeKey, Failure, Plane
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import PORT, count, family_of, is_quiet, run_in_child
from tests.bpf.topology import Place, Topology

UNPRIVILEGED = """
import os, socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
os.setgid(65534); os.setuid(65534)
sock.settimeout(3)
try:
    sock.connect(("10.77.2.1", 7000))
except OSError as error:
    print(error.errno)
else:
    print("connected")
"""


def test_device_that_cannot_be_cleared_is_a_refusal_not_a_timeout(
    net: Topology, plane: Plane, ztunnel: Ztunnel
) -> None:
    """Clearing needs CAP_NET_RAW of the caller: without it the connect ends at once with a reason, counted."""
    plane.put_workload(net.a.address4, 11)
    plane.put_workload(net.b.address4, 22)
    refused = count(plane, Counter.CONNECT_REFUSED_DEVICE)
    done = net.a.command(sys.executable, "-c", UNPRIVILEGED)
    assert done.stdout.strip() in (str(errno.ENETUNREACH), "connected"), done.stderr
    if done.stdout.strip() == "connected":
        pytest.skip("this kernel lets a program clear the device whoever calls")
    assert count(plane, Counter.CONNECT_REFUSED_DEVICE) == refused + 1
    stats = plane.edges()[EdgeKey(11, 22, Direction.OUTBOUND)]
    assert stats.failed[Failure.DENIED] == 1


def test_device_that_cannot_be_cleared_leaves_no_older_note(net: Topology, plane: Plane, pod: Place) -> None:
    """Captured before, then bound to a device: what is refused now must not be told by what was dialled then."""
    with pod.socket() as sock:
        sock.settimeout(None)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("10.77.2.1", PORT))
        assert plane.note(sock) is not None
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        refused = count(plane, Counter.CONNECT_REFUSED_DEVICE)

        def connect() -> None:
            os.setgid(65534)
            os.setuid(65534)
            sock.connect_ex(("10.77.9.1", PORT))

        run_in_child(pod, connect)
        if count(plane, Counter.CONNECT_REFUSED_DEVICE) == refused:
            pytest.skip("this kernel lets a program clear the device whoever calls")
        assert plane.note(sock) is None


@pytest.fixture
def no_room(net: Topology, ztunnel: Ztunnel) -> Iterator[None]:
    """The kernel has no memory for what belongs to a socket of pod a, and so none for a note."""
    bound = net.a.command("sysctl", "-n", "net.core.optmem_max")
    if bound.returncode != 0:
        pytest.skip("this kernel has one bound for the whole machine (before 6.8)")
    assert net.a.command("sysctl", "-qw", "net.core.optmem_max=1").returncode == 0
    yield
    assert net.a.command("sysctl", "-qw", f"net.core.optmem_max={bound.stdout.strip()}").returncode == 0


@pytest.mark.parametrize("address", ["10.77.9.1", "fd77:9::1"])
def test_connect_without_room_for_its_note_is_refused(
    net: Topology, plane: Plane, ztunnel: Ztunnel, no_room: None, address: str
) -> None:
    """Neither in clear nor to a ztunnel that could not know where it goes; with a reason, counted."""
    edge = EdgeKey(33, 44, Direction.OUTBOUND)
    plane.remove_edges([edge])
    for place, number in ((net.a, edge.source), (net.out, edge.destination)):
        plane.put_workload(place.address4, number)
        plane.put_workload(place.address6, number)
    refused = count(plane, Counter.CONNECT_REFUSED_NOTE)
    with net.out.listen(address, PORT) as server, net.a.socket(family_of(address)) as app:
        with pytest.raises(OSError) as failure:
            app.connect((address, PORT))
        assert failure.value.errno == errno.ENOMEM
        assert plane.note(app) is None
        assert is_quiet(server)
    assert is_quiet(ztunnel.outbound4)
    assert is_quiet(ztunnel.outbound6)
    assert count(plane, Counter.CONNECT_REFUSED_NOTE) == refused + 1
    assert plane.edges()[edge].failed[Failure.DENIED] == 1
