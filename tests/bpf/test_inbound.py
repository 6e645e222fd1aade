"""Who answers what arrives from outside: ztunnel, the application, or nobody."""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bpf import kernel
from bpf.layout import CExpected, CExpectedKey
from bpf.plane import Counter, Note, NoteKind, Plane, PodFlag
from tests.bpf.conftest import BOTH, Ztunnel, enrol
from tests.bpf.dialling import PORT, accepted, as_client, count, dial, family_of, is_quiet
from tests.bpf.topology import Place, Topology

ADDRESSES = ["10.77.1.1", "fd77:1::1"]


@pytest.fixture
def app(net: Topology) -> Iterator[socket.socket]:
    """The application of pod a, on both families."""
    with net.a.listen("::", PORT) as server:
        yield server


@pytest.mark.parametrize("address", ADDRESSES)
def test_stranger_is_steered_to_ztunnel_with_the_address_it_dialled(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel, address: str
) -> None:
    steered = count(plane, Counter.INBOUND_STEERED)
    with dial(net.out, address), accepted(ztunnel.inbound) as sock:
        assert sock.getsockname()[0].removeprefix("::ffff:") == address
        assert sock.getsockname()[1] == PORT
        assert sock.getpeername()[0].removeprefix("::ffff:") in ("10.77.9.1", "fd77:9::1")
        assert plane.note(sock) is None
    assert is_quiet(app)
    assert count(plane, Counter.INBOUND_STEERED) > steered


@pytest.mark.parametrize("address", ADDRESSES)
def test_port_that_nobody_listens_on_is_ztunnels_too(net: Topology, ztunnel: Ztunnel, address: str) -> None:
    with dial(net.out, address, 9999), accepted(ztunnel.inbound) as sock:
        assert sock.getsockname()[1] == 9999


@pytest.mark.parametrize("address", ADDRESSES)
def test_hbone_reaches_its_own_listener(net: Topology, ztunnel: Ztunnel, address: str) -> None:
    with dial(net.out, address, 15008), accepted(ztunnel.hbone) as sock:
        assert sock.getsockname()[1] == 15008
    assert is_quiet(ztunnel.inbound)


@pytest.mark.parametrize("port", [15001, 15006])
def test_mesh_ports_from_outside_are_plain_inbound(net: Topology, ztunnel: Ztunnel, port: int) -> None:
    with dial(net.out, "10.77.1.1", port), accepted(ztunnel.inbound) as sock:
        assert sock.getsockname()[1] == port
    assert is_quiet(ztunnel.outbound4)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("port", [PORT, 15008])
def test_without_ztunnel_strangers_are_refused_at_once(
    net: Topology, plane: Plane, app: socket.socket, pod: Place, address: str, port: int
) -> None:
    refused = count(plane, Counter.INBOUND_REFUSED)
    start = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        dial(net.out, address, port)
    assert time.monotonic() - start < 0.5
    assert is_quiet(app)
    assert count(plane, Counter.INBOUND_REFUSED) > refused


def test_fallback_lets_strangers_reach_the_application_but_never_15008(
    net: Topology, plane: Plane, app: socket.socket, pod: Place
) -> None:
    plane.set_fallback(pod.cookie, True)
    passed = count(plane, Counter.INBOUND_FALLBACK)
    with dial(net.out, "10.77.1.1"), accepted(app):
        pass
    assert count(plane, Counter.INBOUND_FALLBACK) > passed
    with pytest.raises(ConnectionRefusedError):
        dial(net.out, "10.77.1.1", 15008)
    plane.set_fallback(pod.cookie, False)
    with pytest.raises(ConnectionRefusedError):
        dial(net.out, "10.77.1.1")


def test_fallback_is_of_no_account_while_ztunnel_listens(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel
) -> None:
    plane.set_fallback(net.a.cookie, True)
    with dial(net.out, "10.77.1.1"), accepted(ztunnel.inbound):
        assert is_quiet(app)


def test_closed_listener_leaves_its_slot(net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel) -> None:
    assert set(plane.listeners(net.a.cookie)) == {15006, 15008}
    ztunnel.inbound.close()
    assert set(plane.listeners(net.a.cookie)) == {15008}
    with pytest.raises(ConnectionRefusedError):
        dial(net.out, "10.77.1.1")


def test_next_ztunnel_takes_over_in_one_step(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """Two listeners without SO_REUSEPORT cannot share a port: the next one takes another and gets the slot."""
    with ztunnel.own() as following:
        following.bind(("0.0.0.0", 15106))
        following.listen(16)
        plane.put_listener(net.a.cookie, 15006, following)
        with dial(net.out, "10.77.1.1"), accepted(following):
            assert is_quiet(ztunnel.inbound)


def test_listener_of_the_wrong_family_is_a_refusal(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel
) -> None:
    """Not even with an application on the port, which would answer if the lookup passed."""
    bad = count(plane, Counter.INBOUND_BAD_LISTENER)
    with ztunnel.own() as only4:
        only4.bind(("127.0.0.1", 15106))
        only4.listen(16)
        plane.put_listener(net.a.cookie, 15006, only4)
        with pytest.raises(ConnectionRefusedError):
            dial(net.out, "fd77:1::1")
    assert is_quiet(app)
    assert count(plane, Counter.INBOUND_BAD_LISTENER) > bad


def test_address_that_nobody_announced_is_refused(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    unknown = count(plane, Counter.INBOUND_UNKNOWN_ADDRESS)
    plane.remove_address(net.a.address4)
    with pytest.raises(ConnectionRefusedError):
        dial(net.out, "10.77.1.1")
    assert count(plane, Counter.INBOUND_UNKNOWN_ADDRESS) > unknown


def test_draining_pod_answers_itself_and_keeps_hbone(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel
) -> None:
    plane.set_flags(net.a.cookie, PodFlag(0))
    draining = count(plane, Counter.INBOUND_DRAINING)
    with dial(net.out, "10.77.1.1"), accepted(app):
        pass
    assert count(plane, Counter.INBOUND_DRAINING) > draining
    with dial(net.out, "10.77.1.1", 15008), accepted(ztunnel.hbone):
        pass


@pytest.mark.parametrize("address", ADDRESSES)
def test_ztunnel_reaches_the_application_of_its_pod(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel, address: str
) -> None:
    with as_client(plane, net.a, address, net.out.address4, 4242), accepted(app) as sock:
        note = plane.note(sock)
        assert note is not None
        assert note.kind is NoteKind.SERVED
    assert is_quiet(ztunnel.inbound)


@pytest.mark.parametrize("address", ADDRESSES)
def test_probe_of_the_node_reaches_the_application_and_its_tuple_ends_with_it(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel, address: str
) -> None:
    plane.set_node(net.node.cookie)
    with dial(net.node, address) as probe:
        with accepted(app) as sock:
            assert sock.getpeername()[1] == probe.getsockname()[1]
        assert plane.expected() == 1
        note = plane.note(probe)
        assert note is not None
        assert note.kind is NoteKind.PROBE
    assert plane.expected() == 0
    assert is_quiet(ztunnel.inbound)


def test_probe_passes_without_ztunnel_and_a_refused_one_leaves_nothing(net: Topology, plane: Plane, pod: Place) -> None:
    plane.set_node(net.node.cookie)
    with net.a.listen("0.0.0.0", PORT) as server, dial(net.node, "10.77.1.1"), accepted(server):
        pass
    with pytest.raises(ConnectionRefusedError):
        dial(net.node, "10.77.1.1", 9999)
    assert plane.expected() == 0


def test_reused_probe_socket_forgets(net: Topology, plane: Plane, pod: Place) -> None:
    plane.set_node(net.node.cookie)
    with net.node.socket() as sock, net.out.listen("10.77.9.1", PORT):
        sock.settimeout(None)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("10.77.1.1", 9999))
        sock.connect(("10.77.9.1", PORT))
        assert plane.note(sock) is None
        assert plane.expected() == 0


def test_tuples_of_a_pod_go_with_the_pod(net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel) -> None:
    plane.set_node(net.node.cookie)
    with dial(net.node, "10.77.1.1"):
        assert plane.expected() == 1
        plane.unenrol(net.a.cookie)
        assert plane.expected() == 0


def test_the_end_of_a_probe_leaves_the_tuple_of_another_socket(net: Topology, plane: Plane, pod: Place) -> None:
    """The same address and port may be another probe's by then."""
    plane.set_node(net.node.cookie)
    fd = plane.map_fd("expected")
    with net.a.listen("10.77.1.1", PORT) as app, ExitStack() as stack:
        probe, end = dial(net.node, "10.77.1.1"), accepted(app)
        entries = kernel.map_batch(fd, len(bytes(CExpectedKey())), len(bytes(CExpected())))
        assert len(entries) == 1
        for key, _ in entries:
            kernel.map_update(fd, key, bytes(CExpected(cookie=1, netns=pod.cookie)))
            stack.callback(kernel.map_delete, fd, key)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.close()  # by a reset: at once
        end.close()
        assert plane.expected() == 1
    assert plane.expected() == 0


def test_masqueraded_nodeport_traffic_is_no_probe(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel
) -> None:
    """It has the source address of the node's own probes, and is steered all the same."""
    rules = (
        "table ip cvb { chain pre { type nat hook prerouting priority -100; tcp dport 30080 dnat to 10.77.1.1:7000; };"
        " chain post { type nat hook postrouting priority 100; ip daddr 10.77.1.1 masquerade; }; }"
    )
    loaded = net.node.command("nft", rules)
    assert loaded.returncode == 0, loaded.stderr
    try:
        plane.set_node(net.node.cookie)
        with dial(net.node, "10.77.1.1") as probe, accepted(app) as seen:
            source = seen.getpeername()[0]
            assert source == f"::ffff:{probe.getsockname()[0]}"
        with dial(net.out, "10.77.9.254", 30080), accepted(ztunnel.inbound) as sock:
            assert sock.getpeername()[0] == source
        assert is_quiet(app)
    finally:
        net.node.command("nft", "delete table ip cvb")


def test_other_netns_of_the_machine_are_no_nodes(net: Topology, plane: Plane, app: socket.socket, pod: Place) -> None:
    plane.set_node(net.node.cookie)
    with pytest.raises(ConnectionRefusedError):
        dial(net.b, "10.77.1.1")


def test_pod_to_pod_on_one_node_goes_through_both_ztunnels(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    enrol(plane, net.b, BOTH)
    other = Ztunnel(plane, net.b)
    try:
        with dial(net.a, "10.77.2.1", 8000), accepted(ztunnel.outbound4):
            assert is_quiet(other.inbound)
        with ztunnel.own() as upstream:
            upstream.connect(("10.77.2.1", 15008))
            with accepted(other.hbone):
                pass
    finally:
        other.close()


@pytest.mark.parametrize("address", ADDRESSES)
def test_neighbour_in_clear_is_a_stranger(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel, address: str
) -> None:
    """Both addresses are pods' of this node: only one and the same pod is by itself."""
    enrol(plane, net.b, BOTH)
    with net.b.socket(family_of(address)) as sock:
        plane.put_note(sock, Note(NoteKind.OWN))
        sock.connect((address, PORT))
        accepted(ztunnel.inbound).close()
    assert is_quiet(app)


def test_udp_to_an_enrolled_pod_is_left_alone(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    before = plane.counters()
    with net.a.socket(kind=socket.SOCK_DGRAM) as server, net.out.socket(kind=socket.SOCK_DGRAM) as client:
        server.bind(("10.77.1.1", PORT))
        client.sendto(b"ping", ("10.77.1.1", PORT))
        assert server.recv(64) == b"ping"
    assert plane.counters() == before


def test_faked_node_address_does_not_reach_the_application(
    net: Topology, plane: Plane, app: socket.socket, ztunnel: Ztunnel
) -> None:
    """A pod that takes the node's address as its own: martian for IPv4, steered to ztunnel at best."""
    plane.set_node(net.node.cookie)
    net.b.command("ip", "addr", "add", "10.77.1.254/32", "dev", "eth0")
    try:
        with net.b.socket() as sock:
            sock.bind(("10.77.1.254", 0))
            sock.settimeout(0.4)
            with pytest.raises(OSError):
                sock.connect(("10.77.1.1", PORT))
        assert is_quiet(app)
    finally:
        net.b.command("ip", "addr", "del", "10.77.1.254/32", "dev", "eth0")
