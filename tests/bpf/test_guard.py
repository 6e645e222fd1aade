"""The guard on the node's end of a pod's link: what leaves it, and what is dropped there. Topology: topology.py.

nested 10.78.0.2 --- a (enrolled, guarded) === node === out     (=== is where the guard stands: vX on the node)
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bpf import kernel
from bpf.ends import Ends, ends_of
from bpf.plane import Counter, Note, NoteKind, Plane
from tests.bpf import packets
from tests.bpf.conftest import Ztunnel, enrol, loader
from tests.bpf.dialling import PORT, accepted, count, dial, dropped, family_of, is_quiet
from tests.bpf.packets import ACK, RST, SYN, ip4, ip6, tcp
from tests.bpf.topology import Place, Topology, sh

PACKET_QDISC_BYPASS = 20
SOL_PACKET = 263

STRANGER, FORWARDED = Counter.GUARD_DROPPED_STRANGER, Counter.GUARD_DROPPED_FORWARDED
REWRITTEN, UNREADABLE = Counter.GUARD_DROPPED_REWRITTEN, Counter.GUARD_DROPPED_UNREADABLE

OUT = ["10.77.9.1", "fd77:9::1"]


def guard(plane: Plane, net: Topology, place: Place) -> Ends:
    """What the agent does, from the node's netns."""
    with place.path.open() as handle:
        return net.node.run(lambda: plane.attach_guard(place.cookie, handle.fileno()))


@pytest.fixture
def guarded(plane: Plane, net: Topology, ztunnel: Ztunnel) -> Place:
    """Pod a: enrolled, with a ztunnel, guarded."""
    guard(plane, net, net.a)
    return net.a


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


def echo(place: Place, address: str) -> bool:
    """Whether an echo request is answered."""
    is_v6 = ":" in address
    protocol, kind = (socket.IPPROTO_ICMPV6, 128) if is_v6 else (socket.IPPROTO_ICMP, 8)
    request = struct.pack("!BBHHH", kind, 0, 0, 7, 7)
    if not is_v6:  # the kernel fills in that of IPv6
        request = request[:2] + struct.pack("!H", packets.checksum(request)) + request[4:]
    with place.socket(family_of(address), socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(2)
        sock.sendto(request, (address, 0))
        while True:
            answer = sock.recv(2048)
            if answer[0 if is_v6 else 20] == (129 if is_v6 else 0):
                return True


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


def raw_syn(place: Place, address: str, flags: int = SYN) -> None:
    source = place.ip6 if ":" in address else place.ip4
    with place.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.sendto(tcp(source, address, flags), (address, 0))


def frame(place: Place, packet: bytes, ethertype: int = 0, tags: bytes = b"", bypass: bool = False) -> None:
    """A packet socket sends to the node's end of the pod's link."""
    kind = ethertype or (0x86DD if packet[0] >> 4 == 6 else 0x0800)
    with place.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        if bypass:
            sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        place.run(lambda: sock.bind(("eth0", 0)))
        header = gateway(place) + bytes(5) + b"\2" + tags + struct.pack("!H", kind)
        sock.send(header + packet)


def gateway(place: Place) -> bytes:
    assert echo(place, OUT[0]), "fills the neighbour table"
    shown = place.command("ip", "neighbour", "show", "dev", "eth0").stdout
    mac = next(line.split("lladdr ")[1].split()[0] for line in shown.splitlines() if "lladdr" in line)
    return bytes.fromhex(mac.replace(":", ""))


@contextmanager
def hears_nothing(place: Place, address: str, port: int = PORT) -> Iterator[None]:
    """Nobody gets through to a listener there, and no SYN arrives."""
    with place.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_TCP) as tap:
        tap.settimeout(0.3)
        with place.listen(address, port) as server:
            yield
            assert is_quiet(server)
        with pytest.raises(TimeoutError):
            while True:
                data = tap.recv(2048)
                segment = data[(data[0] & 0xF) * 4 :] if ":" not in address else data
                assert not (segment[13] & SYN and segment[2:4] == struct.pack("!H", port)), "a SYN came through"


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
    inner = Place(f"{guarded.name}-in", "10.78.0.2")
    try:
        sh(
            f"ip netns add {inner.name}; ip -n {inner.name} link set lo up;"
            f"ip -n {guarded.name} link add in0 type veth peer name eth0 netns {inner.name};"
            f"ip -n {guarded.name} addr add 10.78.0.1/24 dev in0; ip -n {guarded.name} link set in0 up;"
            f"ip -n {inner.name} addr add 10.78.0.2/24 dev eth0; ip -n {inner.name} link set eth0 up;"
            f"ip -n {inner.name} route add default via 10.78.0.1;"
            f"nsenter --net={guarded.path} sysctl -qw net.ipv4.ip_forward=1;"
            f"nsenter --net={guarded.path} nft 'add table ip nest;"
            " add chain ip nest out { type nat hook postrouting priority 100; };"
            " add rule ip nest out oifname eth0 masquerade'"
        )
        yield inner
    finally:
        sh(
            f"nsenter --net={guarded.path} nft delete table ip nest || true; ip netns del {inner.name} || true;"
            f"nsenter --net={guarded.path} sysctl -qw net.ipv4.ip_forward=0"
        )


def test_namespace_nested_in_the_pod_opens_nothing(net: Topology, plane: Plane, nested: Place) -> None:
    with hears_nothing(net.out, OUT[0]), dropped(plane, FORWARDED), nested.socket() as sock:
        sock.settimeout(0.3)
        with suppress(OSError):
            sock.connect((OUT[0], PORT))


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


# -- where it stands


def test_the_ends_of_a_pods_links_are_found(net: Topology, plane: Plane) -> None:
    with net.a.path.open() as handle:
        found = net.node.run(lambda: ends_of(handle.fileno()))
        index = net.node.run(lambda: socket.if_nametoindex("va"))
        assert found == Ends((index,), ())
        elsewhere = net.out.run(lambda: ends_of(handle.fileno()))
        assert elsewhere == Ends((), ("eth0",)), "another netns than the node's sees no end"


def test_a_link_without_an_end_on_the_node_is_told(net: Topology, plane: Plane) -> None:
    sh(f"ip -n {net.a.name} link add extra type bridge")
    sh(f"ip -n {net.node.name} link add gone type veth peer name far netns {net.out.name}")
    sh(f"ip -n {net.out.name} link set far netns {net.a.name}")
    sh(f"ip -n {net.node.name} link set gone netns {net.out.name}")
    try:
        with net.a.path.open() as handle:
            assert net.node.run(lambda: ends_of(handle.fileno())).without == ("far",)
    finally:
        sh(f"ip -n {net.a.name} link del far; ip -n {net.a.name} link del extra")


def test_pod_that_hides_its_end_keeps_its_guard(net: Topology, plane: Plane, ztunnel: Ztunnel, guarded: Place) -> None:
    """Also when a new agent looks for it."""
    hidden = Place(f"{guarded.name}-hid", guarded.ip4)
    sh(f"ip netns add {hidden.name}; ip -n {guarded.name} link set eth0 netns {hidden.name}")
    try:
        guard(plane, net, guarded)
        assert plane.is_guarded(guarded.cookie)
        sh(
            f"ip -n {hidden.name} link set lo up; ip -n {hidden.name} addr add {guarded.ip4}/24 dev eth0;"
            f"ip -n {hidden.name} link set eth0 up; ip -n {hidden.name} route add default via 10.77.1.254"
        )
        with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER), hidden.socket() as sock:
            sock.settimeout(0.3)
            with suppress(OSError):
                sock.connect((OUT[0], PORT))
    finally:
        sh(f"ip -n {hidden.name} link set eth0 netns {guarded.name}; ip netns del {hidden.name}")
        net.address(guarded)


def test_guard_is_dead_with_the_link_and_made_anew(net: Topology, plane: Plane, guarded: Place) -> None:
    assert plane.is_guarded(guarded.cookie)
    sh(f"ip -n {guarded.name} link del eth0")
    try:
        assert not plane.is_guarded(guarded.cookie)
    finally:
        net.link(guarded)
    guard(plane, net, guarded)
    assert plane.is_guarded(guarded.cookie)
    with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER):
        raw_syn(guarded, OUT[0])


def test_guard_goes_with_the_pod(net: Topology, plane: Plane, guarded: Place) -> None:
    plane.unenrol(guarded.cookie)
    assert not plane.is_guarded(guarded.cookie)
    assert not plane.paths.inbound(guarded.cookie).parent.exists()
    with net.out.listen(OUT[0], PORT) as server, dial(guarded, OUT[0]), accepted(server):
        pass


def test_programs_of_others_on_the_link_come_after(net: Topology, plane: Plane, guarded: Place) -> None:
    """A CNI's program that ends the chain, attached before us or after, does not let an opening by."""
    fd, _ = kernel.load_program(3, 0, struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))  # TCX_PASS
    index = net.node.run(lambda: socket.if_nametoindex("va"))
    plane.detach_guard(guarded.cookie)
    link = net.node.run(lambda: kernel.link_create(fd, index, 46))
    try:
        guard(plane, net, guarded)
        with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER):
            raw_syn(guarded, OUT[0])
    finally:
        os.close(link)
        os.close(fd)


def test_upgrade_swaps_the_guard_in_place(net: Topology, plane: Plane, guarded: Place, loaded: str) -> None:
    (pin,) = plane.paths.inbound(guarded.cookie).parent.glob("guard-*")

    def running() -> tuple[int, int]:
        fd = kernel.open_pin(pin)
        try:
            info = kernel.link_info(fd)
            return info.id, info.program_id
        finally:
            os.close(fd)

    before = running()
    loader("upgrade", "--node", loaded)
    after = running()
    assert before[0] == after[0]
    assert before[1] != after[1]
    with hears_nothing(net.out, OUT[0]), dropped(plane, STRANGER):
        raw_syn(guarded, OUT[0])


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
