"""Sockets and processes that cross the borders of pods, and addresses that lead past what is expected.

Topology: topology.py; pod a is enrolled and has a ztunnel, pod b is enrolled or not, `out` never is. What counts is the
network namespace in which a socket was made, whoever holds it and wherever that process is.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from bpf.plane import Counter, Note, NoteKind, Plane
from tests.bpf.conftest import Ztunnel, enrol
from tests.bpf.dialling import PORT, accepted, count, dial, family_of, is_quiet, run_in_child
from tests.bpf.topology import Place, Topology, sh

OUT = ["10.77.9.1", "fd77:9::1"]
ACCEPTED = NoteKind.ACCEPTED


def handed_over(sock: socket.socket) -> socket.socket:
    """The same socket through SCM_RIGHTS, as another process would receive it."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        socket.send_fds(left, [b"x"], [sock.fileno()])
        _, (fd,), _, _ = socket.recv_fds(right, 1, 1)
    got = socket.socket(fileno=fd)
    got.settimeout(5)
    sock.close()
    return got


def captured_from(plane: Plane, listener: socket.socket, address: str) -> None:
    """The next connection of a listener carries what was dialled."""
    with accepted(listener) as sock:
        note = plane.note(sock)
        assert note is not None
        assert (note.kind, str(note.address), note.port) == (ACCEPTED, address, PORT)


@pytest.fixture
def other(plane: Plane, net: Topology) -> Iterator[Ztunnel]:
    """Pod b, enrolled too."""
    enrol(plane, net.b)
    with ExitStack() as stack:
        ztunnel = Ztunnel(plane, net.b)
        stack.callback(ztunnel.close)
        yield ztunnel


@pytest.mark.parametrize("address", OUT)
def test_socket_of_the_pod_is_captured_in_whatever_namespace_it_is_used(
    net: Topology, plane: Plane, ztunnel: Ztunnel, address: str
) -> None:
    listener = ztunnel.outbound6 if ":" in address else ztunnel.outbound4
    with net.out.listen(address, PORT) as server:
        for place in (net.b, net.out, net.node):
            with handed_over(net.a.socket(family_of(address))) as sock:
                place.run(lambda sock=sock: sock.connect((address, PORT)))  # type: ignore[misc]
                captured_from(plane, listener, address)
        assert is_quiet(server)


def test_socket_of_a_neighbour_speaks_as_the_neighbour(
    net: Topology, plane: Plane, ztunnel: Ztunnel, other: Ztunnel
) -> None:
    """Who gives a socket away gives its identity away; who gets one does not get another's captures."""
    plane.put_workload(net.b.address4, 22)
    with handed_over(net.b.socket()) as sock:
        net.a.run(lambda: sock.connect((OUT[0], PORT)))
        with accepted(other.outbound4) as peer:
            note = plane.note(peer)
            assert note is not None
            assert (note.kind, note.source, str(note.own)) == (ACCEPTED, 22, net.b.ip4)
    assert is_quiet(ztunnel.outbound4)


def test_socket_from_outside_stays_outside(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """It leaves from its own namespace: the pod's identity does not follow, and nothing of the pod leaves."""
    with net.node.listen("10.77.9.254", PORT) as server, handed_over(net.out.socket()) as sock:
        net.a.run(lambda: sock.connect(("10.77.9.254", PORT)))
        with accepted(server) as peer:
            assert peer.getpeername()[0] == net.out.ip4
        assert plane.note(sock) is None
    assert is_quiet(ztunnel.outbound4)


def test_connected_socket_keeps_its_names_in_other_hands(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with handed_over(dial(net.a, OUT[0])) as sock, accepted(ztunnel.outbound4) as peer:
        assert net.out.run(sock.getpeername) == (OUT[0], PORT)
        assert net.b.run(sock.getsockname)[0] == net.a.ip4
        net.b.run(lambda: sock.sendall(b"from elsewhere"))
        assert peer.recv(32) == b"from elsewhere"


def test_listener_in_other_hands_is_behind_its_pods_ztunnel(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with handed_over(net.a.listen("0.0.0.0", PORT)) as server:
        with dial(net.out, net.a.ip4), accepted(ztunnel.inbound) as peer:
            assert peer.getsockname()[:2] == (f"::ffff:{net.a.ip4}", PORT)
        assert net.out.run(lambda: is_quiet(server))


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_no_foreign_hand_binds_a_mesh_port(net: Topology, plane: Plane, pod: Place, port: int) -> None:
    with handed_over(pod.socket()) as sock, pytest.raises(OSError, match="Address already in use"):
        net.out.run(lambda: sock.bind(("0.0.0.0", port)))
    with handed_over(net.out.socket()) as sock:
        pod.run(lambda: sock.bind(("0.0.0.0", port)))


def test_process_that_moves_between_namespaces_takes_its_sockets_along(
    net: Topology, plane: Plane, ztunnel: Ztunnel
) -> None:
    """Made in the pod: captured, from a child that has moved out. Made after the move: the new place's."""
    with net.a.socket() as sock, net.node.listen("10.77.9.254", PORT) as server:

        def move() -> None:
            sock.connect((OUT[0], PORT))
            with socket.create_connection(("10.77.9.254", PORT), 5):
                pass

        run_in_child(net.out, move)
        captured_from(plane, ztunnel.outbound4, OUT[0])
        with accepted(server) as peer:
            assert peer.getpeername()[0] == net.out.ip4
    assert is_quiet(ztunnel.outbound4)


def test_forked_child_connects_the_inherited_socket_under_the_same_rule(
    net: Topology, plane: Plane, ztunnel: Ztunnel
) -> None:
    with net.a.socket() as sock:
        run_in_child(net.a, lambda: sock.connect((OUT[0], PORT)))
        captured_from(plane, ztunnel.outbound4, OUT[0])
        assert sock.getpeername() == (OUT[0], PORT)


def disconnect(sock: socket.socket) -> None:
    libc = __import__("ctypes").CDLL(None)
    assert libc.connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16) == 0


@pytest.mark.parametrize("address", OUT)
def test_socket_from_before_is_captured_when_it_connects_anew(
    net: Topology, plane: Plane, ztunnel: Ztunnel, address: str
) -> None:
    plane.unenrol(net.a.cookie)
    with net.out.listen(address, PORT) as server:
        with dial(net.a, address) as sock:
            accepted(server).close()
            enrol(plane, net.a)
            disconnect(sock)
            sock.connect((address, PORT))
            captured_from(plane, ztunnel.outbound6 if ":" in address else ztunnel.outbound4, address)
        assert is_quiet(server)


@pytest.mark.parametrize(
    ("address", "port"),
    [
        *(("127.0.0.1", 15001), ("0.0.0.0", 15001), ("127.9.9.9", 15001), ("::1", 15001)),
        *(("::", 15006), ("::", 15008), ("10.77.1.1", 15008), ("fd77:1::1", 15006)),
    ],
)
def test_port_that_was_bound_before_is_not_listened_on_after(
    net: Topology, plane: Plane, address: str, port: int
) -> None:
    """A socket that is only bound, and lets others bind too, does not keep ztunnel out; nor is it let in later."""
    with net.a.socket(family_of(address)) as early, ExitStack() as stack:
        for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            early.setsockopt(socket.SOL_SOCKET, name, 1)
        early.bind((address, port))
        enrol(plane, net.a)
        ztunnel = Ztunnel(plane, net.a)
        stack.callback(ztunnel.close)
        with pytest.raises(OSError, match="Address already in use"):
            early.listen()
        with dial(net.a, OUT[0]):
            captured_from(plane, ztunnel.outbound4, OUT[0])


# -- addresses


def test_link_local_destination_is_captured_too(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """ztunnel hears of it, without the scope that its address needs: it cannot be reached, and not in clear."""
    address = link_local(net.node, "va")
    index = net.a.run(lambda: socket.if_nametoindex("eth0"))
    with net.node.listen("::", PORT) as server, net.a.socket(socket.AF_INET6) as sock:
        sock.connect((address, PORT, 0, index))
        captured_from(plane, ztunnel.outbound6, address)
        assert is_quiet(server)


def test_link_local_address_of_the_pod_is_not_announced_and_refused(
    net: Topology, plane: Plane, ztunnel: Ztunnel
) -> None:
    address = link_local(net.a, "eth0")
    index = net.node.run(lambda: socket.if_nametoindex("va"))
    before = count(plane, Counter.INBOUND_UNKNOWN_ADDRESS)
    with net.a.listen("::", PORT) as server, net.node.socket(socket.AF_INET6) as sock:
        with pytest.raises(ConnectionRefusedError):
            sock.connect((address, PORT, 0, index))
        assert is_quiet(server)
    assert count(plane, Counter.INBOUND_UNKNOWN_ADDRESS) > before


def link_local(place: Place, link: str) -> str:
    shown = place.command("ip", "-6", "-o", "address", "show", "dev", link, "scope", "link").stdout
    return shown.split("inet6 ")[1].split("/")[0]


@pytest.mark.parametrize("address", ["255.255.255.255", "10.77.1.255", "224.0.0.1", "ff02::1"])
def test_nobody_connects_to_all(net: Topology, plane: Plane, ztunnel: Ztunnel, address: str) -> None:
    """A broadcast address of a subnet is none that the programs know: captured, and nobody in the mesh has it."""
    index = net.a.run(lambda: socket.if_nametoindex("eth0"))
    target = (address, PORT, 0, index) if ":" in address else (address, PORT)
    with net.node.listen("0.0.0.0", PORT) as server, net.a.socket(family_of(address)) as sock:
        sock.settimeout(0.3)
        with suppress(OSError):
            sock.connect(target)
        assert is_quiet(server)


@pytest.mark.parametrize("address", ["10.77.1.1", "fd77:1::1"])
def test_pods_own_address_stays_in_the_pod(net: Topology, plane: Plane, ztunnel: Ztunnel, address: str) -> None:
    with net.a.listen(address, PORT) as server, dial(net.a, address), accepted(server) as peer:
        assert plane.note(peer) is None


@contextmanager
def spoofing(net: Topology) -> Iterator[None]:
    """Pod a gives itself the address of pod b, and the node would carry its packets and answers."""
    a, b = net.a, net.b
    sh(f"ip -n {a.name} addr add {b.ip4}/32 dev eth0; ip -n {a.name} -6 addr add {b.ip6}/128 dev eth0 nodad")
    try:
        yield
    finally:
        sh(f"ip -n {a.name} addr del {b.ip4}/32 dev eth0; ip -n {a.name} -6 addr del {b.ip6}/128 dev eth0")


@pytest.mark.parametrize("family", [4, 6])
def test_identity_does_not_follow_an_address_that_the_pod_gave_itself(
    net: Topology, plane: Plane, ztunnel: Ztunnel, other: Ztunnel, family: int
) -> None:
    address, listener = (OUT[0], ztunnel.outbound4) if family == 4 else (OUT[1], ztunnel.outbound6)
    faked, own = (net.b.ip4, net.a.ip4) if family == 4 else (net.b.ip6, net.a.ip6)
    plane.put_workload(net.a.address4 if family == 4 else net.a.address6, 11)
    plane.put_workload(net.b.address4 if family == 4 else net.b.address6, 22)
    with spoofing(net), net.a.socket(family_of(address)) as sock:
        sock.bind((faked, 0))
        sock.connect((address, PORT))
        with accepted(listener) as peer:
            note = plane.note(peer)
            assert note is not None
            assert (note.kind, note.source, str(note.own)) == (ACCEPTED, 11, own)
    assert is_quiet(other.outbound4)
    assert is_quiet(other.outbound6)


def test_address_of_a_neighbour_in_the_pod_does_not_take_the_neighbours_place(
    net: Topology, plane: Plane, ztunnel: Ztunnel, other: Ztunnel
) -> None:
    """A connect to it is the pod's with itself and reaches nobody's ztunnel; what is sent to it reaches its owner."""
    with spoofing(net), net.a.listen("0.0.0.0", PORT) as server:
        with dial(net.out, net.b.ip4), accepted(other.inbound):
            pass
        assert is_quiet(server)


# -- forging what ztunnel trusts


def test_dial_to_15001_that_imitates_a_captured_connection_has_no_note(
    net: Topology, plane: Plane, ztunnel: Ztunnel
) -> None:
    """The 4-tuple of a captured connection that has just ended, dialled directly."""
    with dial(net.a, OUT[0]) as app, accepted(ztunnel.outbound4) as peer:
        remote, local = peer.getsockname(), peer.getpeername()
        app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with net.a.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(local)
        sock.connect(remote)
        with accepted(ztunnel.outbound4) as peer:
            assert plane.note(peer) is None


def test_a_mark_makes_no_ztunnel(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    for mark in (0x539, 0x111, 0x7FFFFFFF):
        with net.a.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.connect((OUT[0], PORT))
            captured_from(plane, ztunnel.outbound4, OUT[0])


@pytest.mark.parametrize("kind", [NoteKind.OWN, NoteKind.CLIENT])
def test_what_ztunnels_socket_accepts_or_leaves_is_not_ztunnels(
    net: Topology, plane: Plane, ztunnel: Ztunnel, kind: NoteKind
) -> None:
    """A note is of one socket: neither what a listener accepts nor a copy of the descriptor's maker inherits it."""
    with ztunnel.own() as server, net.a.socket() as client:
        if kind is NoteKind.CLIENT:
            plane.put_note(server, Note(kind, net.out.address4, 5, netns=net.a.cookie))
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        with accepted(server) as peer:
            assert plane.note(peer) is None
            client.close()
            disconnect(peer)
            peer.settimeout(3)
            peer.connect((OUT[0], PORT))
            captured_from(plane, ztunnel.outbound4, OUT[0])


@pytest.mark.parametrize(
    ("name", "kind", "protocol"),
    [("SCTP", socket.SOCK_STREAM, 132), ("DCCP", 6, 33), ("UDP-Lite", socket.SOCK_DGRAM, 136)],
)
def test_protocols_that_are_not_tcp_are_left_alone(
    net: Topology, plane: Plane, ztunnel: Ztunnel, name: str, kind: int, protocol: int
) -> None:
    try:
        sock = net.a.socket(socket.AF_INET, kind, protocol)
    except OSError as error:
        pytest.skip(f"this kernel has no {name}: {error}")
    with sock:
        sock.settimeout(0.3)
        with suppress(OSError):
            sock.connect((OUT[0], PORT))
        assert plane.note(sock) is None
    assert is_quiet(ztunnel.outbound4)
