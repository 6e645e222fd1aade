"""Who may bind the mesh's ports in an enrolled pod."""

import contextlib
import errno
import socket

import pytest

from bpf.plane import Counter, Note, NoteKind, Plane
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import count
from tests.bpf.topology import Place, Topology

MESH_PORTS = (15001, 15006, 15008)


@pytest.mark.parametrize("port", MESH_PORTS)
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "10.77.1.1", "::", "::1"])
def test_application_cannot_bind_a_mesh_port(net: Topology, plane: Plane, pod: Place, address: str, port: int) -> None:
    refused = count(plane, Counter.BIND_REFUSED)
    with pod.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock, pytest.raises(OSError) as failure:
        sock.bind((address, port))
    assert failure.value.errno == errno.EADDRINUSE
    assert count(plane, Counter.BIND_REFUSED) == refused + 1


def test_the_pods_entry_says_which_port_was_refused_until_it_is_written_again(
    net: Topology, plane: Plane, pod: Place
) -> None:
    known = plane.pods()[pod.cookie]
    plane.enrol(known.netns, known.ip4, known.ip6, known.flags)
    assert plane.pods()[pod.cookie].refused_ports.numbers == ()
    for port in (15006, 15008, 15000, 15006):
        with pod.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
    assert plane.pods()[pod.cookie].refused_ports.numbers == (15006, 15008)
    plane.enrol(known.netns, known.ip4, known.ip6, known.flags)
    assert plane.pods()[pod.cookie].refused_ports.numbers == ()


def test_reuseport_does_not_let_an_application_in(net: Topology, ztunnel: Ztunnel) -> None:
    """A second listener on ztunnel's port would receive half of its connections."""
    with net.a.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            sock.bind(("127.0.0.1", 15001))


@pytest.mark.parametrize("kind", [NoteKind.NONE, NoteKind.CLIENT, NoteKind.SERVED])
def test_only_an_own_note_opens_the_ports(net: Topology, plane: Plane, pod: Place, kind: NoteKind) -> None:
    with pod.socket() as sock:
        plane.put_note(sock, Note(kind, pod.address4, 1))
        with pytest.raises(OSError, match="in use"):
            sock.bind(("127.0.0.1", 15001))


def test_ztunnel_binds_with_its_note(net: Topology, plane: Plane, pod: Place) -> None:
    for port in MESH_PORTS:
        with pod.socket() as sock:
            plane.put_note(sock, Note(NoteKind.OWN))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other tests' connections linger
            sock.bind(("127.0.0.1", port))


def test_other_ports_other_pods_and_udp_are_free(net: Topology, plane: Plane, pod: Place) -> None:
    with pod.socket() as sock, net.b.socket() as foreign, pod.socket(kind=socket.SOCK_DGRAM) as udp:
        sock.bind(("127.0.0.1", 15000))
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # other tests' connections linger
        foreign.bind(("0.0.0.0", 15001))
        udp.bind(("0.0.0.0", 15001))


def test_mptcp_listener_is_held_to_the_rule_too(net: Topology, plane: Plane, pod: Place) -> None:
    try:
        sock = pod.socket(protocol=262)
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    with sock, pytest.raises(OSError, match="in use"):
        sock.bind(("127.0.0.1", 15008))
