"""Ways of opening TCP connections without a TCP socket, and what arrives of them."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.bpf import packets
from tests.bpf.dialling import PORT, family_of, is_quiet
from tests.bpf.packets import SYN, tcp
from tests.bpf.topology import Place

PACKET_QDISC_BYPASS = 20
SOL_PACKET = 263
OUT = ["10.77.9.1", "fd77:9::1"]


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
