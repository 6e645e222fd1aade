"""Which connects are captured, and what the socket's note says afterwards. Real sockets in namespaces."""

import errno
import shutil
import socket
from ipaddress import ip_address

import pytest

from bpf.loader import install
from bpf.paths import NodePaths
from bpf.plane import Counter, Direction, Note, NoteKind, Plane, PodFlag
from tests.bpf.conftest import BOTH, Ztunnel, enrol
from tests.bpf.dialling import PORT, accepted, count, dial, is_quiet
from tests.bpf.topology import Place, Topology, sh


@pytest.mark.parametrize(
    ("family", "address", "shown"),
    [
        pytest.param(socket.AF_INET, "10.77.2.1", "10.77.2.1", id="v4"),
        pytest.param(socket.AF_INET6, "fd77:2::1", "fd77:2::1", id="v6"),
        pytest.param(socket.AF_INET6, "::ffff:10.77.2.1", "10.77.2.1", id="v4-mapped"),
    ],
)
def test_connect_reaches_ztunnel_with_what_was_dialled(
    net: Topology, plane: Plane, ztunnel: Ztunnel, family: int, address: str, shown: str
) -> None:
    listener = (
        ztunnel.outbound6 if family == socket.AF_INET6 and not address.startswith("::ffff") else ztunnel.outbound4
    )
    with dial(net.a, address, family=family) as app, accepted(listener) as sock:
        note = plane.note(sock)
        assert note is not None
        assert (note.kind, str(note.address), note.port) == (NoteKind.ACCEPTED, shown, PORT)
        assert note.netns == net.a.cookie
        captured = plane.note(app)
        assert captured is not None
        assert captured.kind is NoteKind.CAPTURED
        assert captured.cookie == note.cookie != 0
        assert plane.in_flight() == 0


def test_bytes_flow_and_half_close_passes_on_a_captured_connection(net: Topology, ztunnel: Ztunnel) -> None:
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4) as sock:
        app.sendall(b"request")
        app.shutdown(socket.SHUT_WR)
        assert sock.recv(64) == b"request"
        assert sock.recv(64) == b""
        sock.sendall(b"answer")
        assert app.recv(64) == b"answer"


def test_netns_that_is_not_enrolled_is_untouched(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    before = plane.counters()
    with net.out.listen("10.77.9.1", PORT) as server, dial(net.b, "10.77.9.1") as client:
        assert client.getpeername() == ("10.77.9.1", PORT)
        assert plane.note(client) is None
        server.accept()[0].close()
    assert plane.counters() == before


def test_connect_is_refused_at_once_while_ztunnel_is_away(net: Topology, plane: Plane, pod: Place) -> None:
    with net.out.listen("10.77.9.1", PORT) as server:
        with pytest.raises(ConnectionRefusedError):
            dial(pod, "10.77.9.1")
        assert is_quiet(server)
    assert plane.in_flight() == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "10.77.1.1", "0.0.0.0", "::1", "fd77:1::1", "::ffff:127.0.0.1"])
def test_pod_talks_to_itself_without_ztunnel(net: Topology, plane: Plane, ztunnel: Ztunnel, address: str) -> None:
    passed = count(plane, Counter.CONNECT_PASSED)
    with net.a.listen("0.0.0.0" if "." in address else "::", PORT) as server, dial(net.a, address) as client:
        server.settimeout(3)
        peer, _ = server.accept()
        with peer:
            assert plane.note(client) is None
            assert plane.note(peer) is None
    assert count(plane, Counter.CONNECT_PASSED) == passed + 1
    assert is_quiet(ztunnel.outbound4)


def test_second_address_of_the_pod_is_its_own(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    assert net.a.command("ip", "addr", "add", "10.77.1.7/32", "dev", "eth0").returncode == 0
    try:
        plane.put_address(ip_address("10.77.1.7"), net.a.cookie, BOTH)
        with net.a.listen("10.77.1.7", PORT), dial(net.a, "10.77.1.7") as client:
            assert plane.note(client) is None
    finally:
        net.a.command("ip", "addr", "del", "10.77.1.7/32", "dev", "eth0")


def test_multicast_gets_the_kernels_own_error(net: Topology, ztunnel: Ztunnel) -> None:
    with net.a.socket() as sock, pytest.raises(OSError) as failure:
        sock.connect(("224.0.0.251", PORT))
    assert failure.value.errno in (errno.ENETUNREACH, errno.EINVAL)
    assert is_quiet(ztunnel.outbound4)


def test_draining_pod_connects_in_clear_and_keeps_no_note(net: Topology, plane: Plane, pod: Place) -> None:
    plane.set_flags(pod.cookie, PodFlag(0))
    with net.out.listen("10.77.9.1", PORT), dial(pod, "10.77.9.1") as client:
        assert client.getpeername() == ("10.77.9.1", PORT)
        assert plane.note(client) is None


def test_capture_follows_the_flag_without_touching_open_connections(
    net: Topology, plane: Plane, ztunnel: Ztunnel
) -> None:
    with (
        net.out.listen("10.77.9.1", PORT) as server,
        dial(net.a, "10.77.9.1") as first,
        accepted(ztunnel.outbound4) as first_accepted,
    ):
        plane.set_flags(net.a.cookie, PodFlag(0))
        with dial(net.a, "10.77.9.1") as second, accepted(server):
            assert plane.note(second) is None
            first.sendall(b"still here")
            assert first_accepted.recv(64) == b"still here"


@pytest.mark.parametrize("kind", [NoteKind.OWN, NoteKind.CLIENT])
def test_sockets_that_ztunnel_marked_are_not_captured(
    net: Topology, plane: Plane, ztunnel: Ztunnel, kind: NoteKind
) -> None:
    own = count(plane, Counter.CONNECT_OWN)
    with net.out.listen("10.77.9.1", PORT) as server, net.a.socket() as sock:
        plane.put_note(sock, Note(kind, net.out.address4, 1234))
        sock.connect(("10.77.9.1", PORT))
        with accepted(server):
            note = plane.note(sock)
            assert note is not None
            assert note.kind is kind
    assert count(plane, Counter.CONNECT_OWN) == own + 1
    assert plane.in_flight() <= 1


def test_reused_socket_never_shows_an_older_note(net: Topology, plane: Plane, pod: Place) -> None:
    """Refused while captured, then connected to an address that passes."""
    with pod.listen("127.0.0.1", PORT) as innocent, pod.socket() as sock:
        sock.settimeout(None)  # a blocking socket is ready for another connect at once
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("10.77.2.1", PORT))
        noted = plane.note(sock)
        assert noted is not None
        assert noted.kind is NoteKind.CAPTURED
        sock.connect(("127.0.0.1", PORT))
        with accepted(innocent) as peer:
            assert plane.note(sock) is None
            assert plane.note(peer) is None
            assert sock.getpeername() == ("127.0.0.1", PORT)


def test_reused_socket_of_an_unenrolled_pod_loses_its_note(net: Topology, plane: Plane, pod: Place) -> None:
    with net.out.listen("10.77.9.1", PORT), pod.socket() as sock:
        sock.settimeout(None)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("10.77.9.1", PORT))
        plane.unenrol(pod.cookie)
        sock.connect(("10.77.9.1", PORT))
        assert plane.note(sock) is None


def test_two_sockets_on_one_source_port_reach_two_destinations(net: Topology, ztunnel: Ztunnel, plane: Plane) -> None:
    def bound() -> socket.socket:
        sock = net.a.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("10.77.1.1", 41000))
        return sock

    with bound() as first, bound() as second:
        first.connect(("10.77.2.1", PORT))
        second.connect(("10.77.2.1", PORT + 1))
        with accepted(ztunnel.outbound4) as one, accepted(ztunnel.outbound4) as two:
            notes = [plane.note(one), plane.note(two)]
            assert {note.port for note in notes if note} == {PORT, PORT + 1}


def test_ipv6_has_one_loopback_address_and_its_limit_is_an_error(net: Topology, ztunnel: Ztunnel) -> None:
    def bound() -> socket.socket:
        sock = net.a.socket(socket.AF_INET6)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("fd77:1::1", 41001))
        return sock

    with bound() as first, bound() as second:
        first.connect(("fd77:2::1", PORT))
        with accepted(ztunnel.outbound6), pytest.raises(OSError) as failure:
            second.connect(("fd77:2::1", PORT + 1))
    assert failure.value.errno == errno.EADDRNOTAVAIL


def test_destinations_spread_over_loopback(net: Topology, ztunnel: Ztunnel) -> None:
    seen = set()
    for port in range(PORT, PORT + 64):
        with dial(net.a, "10.77.2.1", port), accepted(ztunnel.outbound4) as sock:
            seen.add(sock.getsockname()[0])
    assert len(seen) >= 60
    assert all(address.startswith("127.") for address in seen)
    assert not seen & {"127.0.0.0", "127.255.255.255"}


@pytest.mark.parametrize(("address", "port"), [("10.0.96.86", 1073), ("10.0.161.194", 1146)])
def test_destination_whose_hash_is_no_host_address_is_captured(
    net: Topology, plane: Plane, ztunnel: Ztunnel, address: str, port: int
) -> None:
    """They hash to 127.0.0.0 and 127.255.255.255, which are the network's own and its broadcast address."""
    with dial(net.a, address, port), accepted(ztunnel.outbound4) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        note = plane.note(sock)
        assert note is not None
        assert (str(note.address), note.port) == (address, port)


@pytest.mark.parametrize(("own", "address"), [("10.77.1.1", "10.77.2.1"), ("fd77:1::1", "fd77:2::1")])
def test_socket_bound_to_the_pod_address_is_captured(
    net: Topology, plane: Plane, ztunnel: Ztunnel, own: str, address: str
) -> None:
    with net.a.socket(socket.AF_INET6 if ":" in own else socket.AF_INET) as app:
        app.bind((own, 0))
        app.connect((address, PORT))
        assert app.getsockname()[0] == own
        with accepted(ztunnel.outbound6 if ":" in own else ztunnel.outbound4) as sock:
            note = plane.note(sock)
            assert note is not None
            assert note.kind is NoteKind.ACCEPTED


def test_socket_bound_to_a_device_is_captured_too(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with net.a.socket() as app:
        app.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        app.connect(("10.77.2.1", PORT))
        with accepted(ztunnel.outbound4) as sock:
            note = plane.note(sock)
            assert note is not None
            assert str(note.address) == "10.77.2.1"


def test_udp_is_left_alone(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    before = plane.counters()
    server = net.out.socket(kind=socket.SOCK_DGRAM)
    client = net.a.socket(kind=socket.SOCK_DGRAM)
    with server, client:
        server.bind(("10.77.9.1", PORT))
        client.connect(("10.77.9.1", PORT))
        client.send(b"ping")
        data, peer = server.recvfrom(64)
        assert data == b"ping"
        server.sendto(b"pong", peer)
        assert client.recv(64) == b"pong"
        assert client.getpeername() == ("10.77.9.1", PORT)
    assert plane.counters() == before


def test_netns_nested_in_the_pod_leaves_in_clear_as_the_pod(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """A stated limit, with NET_ADMIN in the pod: another cookie, forwarded and masqueraded by the pod."""
    nested = Place(f"{net.a.name}-nested", "10.88.0.2", "fd88::2")
    table = "table ip cvb { chain post { type nat hook postrouting priority 100; oif eth0 masquerade; }; }"
    try:
        sh(
            f"ip netns add {nested.name};"
            f"ip -n {net.a.name} link add inner type veth peer name eth0 netns {nested.name};"
            f"ip -n {net.a.name} addr add 10.88.0.1/24 dev inner; ip -n {net.a.name} link set inner up;"
            f"ip -n {nested.name} addr add 10.88.0.2/24 dev eth0; ip -n {nested.name} link set eth0 up;"
            f"ip -n {nested.name} route add default via 10.88.0.1"
        )
        net.a.command("sysctl", "-qw", "net.ipv4.ip_forward=1")
        assert net.a.command("nft", table).returncode == 0
        with net.out.listen("10.77.9.1", PORT) as server, dial(nested, "10.77.9.1") as client:
            assert plane.note(client) is None
            with accepted(server) as sock:
                assert sock.getpeername()[0] == net.a.ip4
        assert is_quiet(ztunnel.outbound4)
    finally:
        net.a.command("nft", "delete table ip cvb")
        net.a.command("sysctl", "-qw", "net.ipv4.ip_forward=0")
        sh(f"ip netns del {nested.name}")


def test_netns_in_two_sets_is_seen_by_both(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """Why the agent refuses a pod that stands in another set: the later set takes port 15001 for the destination."""
    spare = NodePaths(f"{plane.paths.key}.both")
    try:
        install.load(spare)
        with Plane.open(spare.key) as second:
            second.enrol(net.a.cookie, net.a.address4, net.a.address6, BOTH)
            with dial(net.a, "10.77.2.1"), accepted(ztunnel.outbound4) as sock:
                first_note, second_note = plane.note(sock), second.note(sock)
                assert first_note is not None
                assert str(first_note.address) == "10.77.2.1"
                assert second_note is None
            assert second.counters()[Counter.CONNECT_PASSED] == 1
    finally:
        install.unload(spare)
        shutil.rmtree(spare.state.parent)


def test_workload_numbers_come_from_addresses(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    plane.put_workload(net.a.address4, 11)
    plane.put_workload(net.b.address4, 22)
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4):
        note = plane.note(app)
        assert note is not None
        assert (note.source, note.destination, note.direction) == (11, 22, Direction.NONE)


def test_two_pods_capture_apart(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """The same destination from two pods: each pod's ztunnel sees its own."""
    enrol(plane, net.b)
    other = Ztunnel(plane, net.b)
    try:
        with (
            dial(net.a, "10.77.9.1"),
            dial(net.b, "10.77.9.1"),
            accepted(ztunnel.outbound4) as one,
            accepted(other.outbound4) as two,
        ):
            first, second = plane.note(one), plane.note(two)
            assert first is not None
            assert second is not None
            assert (first.netns, second.netns) == (net.a.cookie, net.b.cookie)
    finally:
        other.close()
