"""The guard on the node's end of a pod's link: what leaves it, and what is dropped there. Topology: topology.py.

nested 10.78.0.2 --- a (enrolled, guarded) === node === out     (=== is where the guard stands: vX on the node)
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bpf.plane import Counter, Note, NoteKind, Plane
from tests.bpf.conftest import Ztunnel, enrol, guard
from tests.bpf.dialling import PORT, accepted, count, dial, dropped, family_of
from tests.bpf.opening import OUT, echo, frame, hears_nothing, raw_syn
from tests.bpf.packets import ACK, RST, SYN, ip4, ip6, tcp
from tests.bpf.topology import Place, Topology, sh

STRANGER, FORWARDED = Counter.GUARD_DROPPED_STRANGER, Counter.GUARD_DROPPED_FORWARDED
REWRITTEN, UNREADABLE = Counter.GUARD_DROPPED_REWRITTEN, Counter.GUARD_DROPPED_UNREADABLE


# -- what goes on


@pytest.mark.parametrize("address", OUT)
def test_ztunnel_opens_connections_and_they_carry(
    net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place, address: str
) -> None:
    before = count(plane, Counter.GUARD_PASSED)
    with dropped(plane), net.out.listen(address, PORT) as server, ztunnel.own(family_of(address)) as own:
        own.connect((address, PORT))
        with accepted(server) as peer:
            peer.sendall(b"hello")
            assert own.recv(16) == b"hello"
    assert count(plane, Counter.GUARD_PASSED) > before


def test_ztunnels_dual_stack_socket_reaches_ipv4(net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place) -> None:
    with dropped(plane), net.out.listen(OUT[0], PORT) as server, ztunnel.own(socket.AF_INET6) as own:
        own.connect((f"::ffff:{OUT[0]}", PORT))
        accepted(server).close()


def test_connection_from_before_lives_on(net: Topology, plane: Plane, pod: Place, ztunnel: Ztunnel) -> None:
    plane.unenrol(pod.cookie)
    with net.out.listen(OUT[0], PORT) as server, dial(pod, OUT[0]) as app, accepted(server) as peer:
        enrol(plane, pod)
        guard(plane, net, pod)
        with dropped(plane):
            app.sendall(b"still here")
            assert peer.recv(16) == b"still here"
            peer.shutdown(socket.SHUT_WR)
            assert app.recv(16) == b""


@pytest.mark.parametrize("address", ["10.77.1.1", "fd77:1::1"])
def test_pod_answers_who_dials_it(net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place, address: str) -> None:
    with dropped(plane), dial(net.out, address) as client, accepted(ztunnel.inbound) as peer:
        peer.sendall(b"welcome")
        assert client.recv(16) == b"welcome"


def test_refusals_of_the_pod_reach_who_asked(net: Topology, plane: Plane, pod: Place) -> None:
    guard(plane, net, pod)
    with dropped(plane), pytest.raises(ConnectionRefusedError):
        dial(net.out, pod.ip4)


def test_udp_and_echo_requests_are_left_alone(net: Topology, plane: Plane, guarded: Place) -> None:
    with (
        dropped(plane),
        net.out.socket(kind=socket.SOCK_DGRAM) as there,
        guarded.socket(kind=socket.SOCK_DGRAM) as here,
    ):
        there.bind((OUT[0], PORT))
        here.sendto(b"datagram", (OUT[0], PORT))
        assert there.recv(16) == b"datagram"
        for address in OUT:
            assert echo(guarded, address)


# -- what does not


@pytest.mark.parametrize("address", OUT)
def test_without_the_guard_a_raw_socket_opens_connections(
    net: Topology, plane: Plane, pod: Place, address: str
) -> None:
    with net.out.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_TCP) as tap:
        raw_syn(pod, address)
        tap.settimeout(2)
        assert tap.recv(2048)


@pytest.mark.parametrize("address", OUT)
def test_raw_sockets_open_nothing(net: Topology, plane: Plane, guarded: Place, address: str) -> None:
    with hears_nothing(net.out, address), dropped(plane, STRANGER):
        raw_syn(guarded, address)


@pytest.mark.parametrize("bypass", [False, True], ids=["queued", "past the queues"])
@pytest.mark.parametrize("address", OUT)
def test_packet_sockets_open_nothing(net: Topology, plane: Plane, guarded: Place, address: str, bypass: bool) -> None:
    own, build = (guarded.ip6, ip6) if ":" in address else (guarded.ip4, ip4)
    with hears_nothing(net.out, address), dropped(plane, STRANGER):
        frame(guarded, build(tcp(own, address), own, address), bypass=bypass)


def test_reset_of_a_raw_socket_is_no_opening(net: Topology, plane: Plane, guarded: Place) -> None:
    with dropped(plane):
        raw_syn(guarded, OUT[0], RST)
        raw_syn(guarded, OUT[0], SYN | ACK)


@pytest.fixture
def nested(guarded: Place) -> Iterator[Place]:
    """A netns behind the pod, whose packets the pod forwards as its own."""
    inner = Place(f"{guarded.name}-in", "10.78.0.2", "fd78::2")
    try:
        sh(
            f"ip netns add {inner.name}; ip -n {inner.name} link set lo up;"
            f"ip -n {guarded.name} link add in0 type veth peer name eth0 netns {inner.name};"
            f"ip -n {guarded.name} addr add 10.78.0.1/24 dev in0; ip -n {guarded.name} link set in0 up;"
            f"ip -n {inner.name} addr add 10.78.0.2/24 dev eth0; ip -n {inner.name} link set eth0 up;"
            f"ip -n {inner.name} route add default via 10.78.0.1;"
            f"ip -n {guarded.name} addr add fd78::1/64 dev in0 nodad;"
            f"ip -n {inner.name} addr add fd78::2/64 dev eth0 nodad;"
            f"ip -n {inner.name} -6 route add default via fd78::1;"
            f"nsenter --net={guarded.path} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1;"
            f"nsenter --net={guarded.path} nft 'add table ip nest;"
            " add chain ip nest out { type nat hook postrouting priority 100; };"
            " add rule ip nest out oifname eth0 masquerade'"
        )
        yield inner
    finally:
        sh(
            f"nsenter --net={guarded.path} nft delete table ip nest || true; ip netns del {inner.name} || true;"
            f"nsenter --net={guarded.path} sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"
        )


@pytest.mark.parametrize("address", OUT)
def test_namespace_nested_in_the_pod_opens_nothing(net: Topology, plane: Plane, nested: Place, address: str) -> None:
    with hears_nothing(net.out, address), dropped(plane, FORWARDED), nested.socket(family_of(address)) as sock:
        sock.settimeout(0.3)
        with suppress(OSError):
            sock.connect((address, PORT))


@contextmanager
def translated(place: Place, match: str, to: str) -> Iterator[None]:
    """The pod's own nftables send what matches elsewhere."""
    sh(
        f"nsenter --net={place.path} sysctl -qw net.ipv4.conf.all.route_localnet=1;"
        f"nsenter --net={place.path} nft 'add table ip own;"
        " add chain ip own out { type nat hook output priority -100; };"
        f" add rule ip own out {match} dnat to {to};"
        " add chain ip own post { type nat hook postrouting priority 100; };"
        " add rule ip own post oifname eth0 masquerade'"
    )
    try:
        yield
    finally:
        sh(f"nsenter --net={place.path} nft delete table ip own")


def test_captured_connect_that_the_pod_translates_leaves_it_not(net: Topology, plane: Plane, guarded: Place) -> None:
    elsewhere = translated(guarded, "ip daddr 127.0.0.0/8 tcp dport 15001", f"{OUT[0]}:{PORT}")
    with elsewhere, hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER), guarded.socket() as sock:
        sock.settimeout(0.3)
        with suppress(OSError):
            sock.connect((OUT[0], 80))


def test_ztunnels_own_connect_is_not_led_elsewhere(
    net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place
) -> None:
    elsewhere = translated(guarded, "tcp dport 81", f"{OUT[0]}:{PORT}")
    with elsewhere, hears_nothing(net.out, OUT[0]), dropped(plane, REWRITTEN), ztunnel.own() as own:
        own.settimeout(0.3)
        with suppress(OSError):
            own.connect((OUT[0], 81))


@pytest.mark.parametrize(
    ("chain", "rule", "address"),
    [
        pytest.param("out", "ip daddr 10.77.9.2 dnat ip to 10.77.9.1", "10.77.9.2", id="destination"),
        pytest.param("out", "ip6 daddr fd77:9::2 dnat ip6 to fd77:9::1", "fd77:9::2", id="destination v6"),
        pytest.param("post", "ip daddr 10.77.9.1 snat ip to 10.77.1.99", OUT[0], id="source"),
        pytest.param("post", "ip6 daddr fd77:9::1 snat ip6 to fd77:1::99", OUT[1], id="source v6"),
        pytest.param("post", "ip daddr 10.77.9.1 tcp dport 7000 snat ip to 10.77.1.1:1234", OUT[0], id="source port"),
    ],
)
def test_each_part_of_ztunnels_opening_leaves_as_it_was(
    net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place, chain: str, rule: str, address: str
) -> None:
    """One part is translated, the others stay: the peer would take it for another's, or another would get it."""
    sh(
        f"nsenter --net={guarded.path} nft 'add table inet own;"
        " add chain inet own out { type nat hook output priority -100; };"
        " add chain inet own post { type nat hook postrouting priority 100; };"
        f" add rule inet own {chain} {rule}'"
    )
    try:
        there = OUT[1] if ":" in address else OUT[0]
        with hears_nothing(net.out, there), dropped(plane, REWRITTEN), ztunnel.own(family_of(address)) as own:
            own.settimeout(0.3)
            with suppress(OSError):
                own.connect((address, PORT))
    finally:
        sh(f"nsenter --net={guarded.path} nft delete table inet own")


@pytest.mark.parametrize("address", OUT)
def test_rewritten_syn_of_a_routed_socket_stays(net: Topology, plane: Plane, guarded: Place, address: str) -> None:
    """Its Fast Open data would be seen on the link."""
    with dropped(plane, STRANGER), guarded.socket(family_of(address)) as sock:
        if ":" in address:
            header = (
                struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + bytes(16) + socket.inet_pton(socket.AF_INET6, address)
            )
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, header)
        else:
            route = bytes([131, 11, 4]) + socket.inet_aton(address) * 2 + b"\0"
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
        sock.settimeout(0.3)
        with suppress(OSError):
            sock.connect((address, PORT))


# -- what hides


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        pytest.param(struct.pack("!HH", 0x8100, 0), STRANGER, id="one empty tag"),
        pytest.param(struct.pack("!HHHH", 0x88A8, 0, 0x8100, 0), UNREADABLE, id="two empty tags"),
    ],
)
def test_tags_that_the_node_takes_off_hide_nothing(
    net: Topology, plane: Plane, guarded: Place, tags: bytes, reason: Counter
) -> None:
    with hears_nothing(net.out, OUT[0]), dropped(plane, reason):
        frame(guarded, ip4(tcp(guarded.ip4, OUT[0]), guarded.ip4, OUT[0]), tags=tags)


@pytest.mark.parametrize("address", OUT)
def test_frames_that_end_within_the_ip_header_are_not_let_through(
    net: Topology, plane: Plane, guarded: Place, address: str
) -> None:
    """Sent, not test-run: there the kernel takes no such frame."""
    own, build, size = (guarded.ip6, ip6, 39) if ":" in address else (guarded.ip4, ip4, 19)
    with hears_nothing(net.out, address), dropped(plane, UNREADABLE):
        frame(guarded, build(tcp(own, address), own, address)[:size])


def test_5000_openings_of_ztunnel_in_a_row_all_pass(
    net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place
) -> None:
    """The kernel keeps the socket with each of them, from four threads at once."""
    with dropped(plane), net.out.listen(OUT[0], PORT) as server:
        stop = time.monotonic() + 20

        def take() -> None:
            for _ in range(5000):
                server.accept()[0].close()

        taker = threading.Thread(target=take)
        taker.start()

        def give() -> None:
            for _ in range(1250):
                with guarded.socket() as sock:
                    plane.put_note(sock, Note(NoteKind.OWN))
                    sock.connect((OUT[0], PORT))

        threads = [threading.Thread(target=give) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in (*threads, taker):
            thread.join(max(0.1, stop - time.monotonic()))
        assert not taker.is_alive()
