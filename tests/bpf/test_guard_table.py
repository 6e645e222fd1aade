"""The guard as a table: BPF_PROG_TEST_RUN on frames, whose socket is nobody's."""

import ctypes
import os
import struct
from collections.abc import Iterator

import pytest

from bpf import kernel
from bpf.plane import Counter, Plane
from tests.bpf.dialling import dropped
from tests.bpf.packets import ACK, RST, SYN, ip4, ip6, tcp

STRANGER, UNREADABLE = Counter.GUARD_DROPPED_STRANGER, Counter.GUARD_DROPPED_UNREADABLE

A4, O4, A6, O6 = "10.77.1.1", "10.77.9.1", "fd77:1::1", "fd77:9::1"
SYN4, SYN6 = tcp(A4, O4), tcp(A6, O6)
ACK4, ACK6 = tcp(A4, O4, ACK), tcp(A6, O6, ACK)
NEXT, DROP = 0xFFFFFFFF, 2


def options(following: int, units: int = 0) -> bytes:
    return bytes([following, units]) + bytes(6 + 8 * units)


def fragment(following: int, at: int, more: bool = True) -> bytes:
    return struct.pack("!BBHI", following, 0, at | more, 99)


ROWS = [
    pytest.param(ip4(SYN4, A4, O4), STRANGER, id="opening"),
    pytest.param(ip4(ACK4, A4, O4), None, id="acknowledgement"),
    pytest.param(ip4(tcp(A4, O4, SYN | ACK), A4, O4), None, id="answer"),
    pytest.param(ip4(tcp(A4, O4, SYN | RST), A4, O4), STRANGER, id="opening and reset"),
    pytest.param(ip4(tcp(A4, O4, 0xFF & ~ACK), A4, O4), STRANGER, id="all flags but one"),
    pytest.param(ip4(SYN4, A4, O4, options=b"\1" * 40), STRANGER, id="opening behind options"),
    pytest.param(ip4(ACK4, A4, O4, options=b"\1" * 40), None, id="acknowledgement behind options"),
    pytest.param(ip4(SYN4, A4, O4, fragment=0x2000), STRANGER, id="opening, first fragment"),
    pytest.param(ip4(SYN4[:8], A4, O4, fragment=0x2000), UNREADABLE, id="first fragment without flags"),
    pytest.param(ip4(SYN4[8:], A4, O4, fragment=1), UNREADABLE, id="fragment with flags"),
    pytest.param(ip4(SYN4[16:], A4, O4, fragment=2), None, id="fragment behind the flags"),
    pytest.param(ip4(SYN4[:13], A4, O4), UNREADABLE, id="cut short"),
    pytest.param(ip4(SYN4, A4, O4, protocol=17), None, id="udp"),
    pytest.param(ip4(SYN4[8:], A4, O4, fragment=1, protocol=17), None, id="udp fragment"),
    pytest.param(ip4(SYN4, A4, O4, protocol=132), None, id="sctp"),
    pytest.param(ip6(SYN6, A6, O6), STRANGER, id="opening v6"),
    pytest.param(ip6(ACK6, A6, O6), None, id="acknowledgement v6"),
    pytest.param(ip6(options(6) + SYN6, A6, O6, 0), STRANGER, id="opening behind hop-by-hop"),
    pytest.param(ip6(options(60, 3) + options(6) + SYN6, A6, O6, 43), STRANGER, id="opening behind two headers"),
    pytest.param(ip6(bytes([6, 4]) + bytes(22) + SYN6, A6, O6, 51), STRANGER, id="opening behind authentication"),
    pytest.param(ip6(options(6) + ACK6, A6, O6, 60), None, id="acknowledgement behind options v6"),
    pytest.param(ip6(b"".join(options(60) for _ in range(7)) + SYN6, A6, O6, 60), UNREADABLE, id="too many headers"),
    pytest.param(ip6(fragment(6, 0) + SYN6, A6, O6, 44), STRANGER, id="opening, first fragment v6"),
    pytest.param(ip6(fragment(6, 0, more=False) + SYN6, A6, O6, 44), STRANGER, id="opening, only fragment"),
    pytest.param(ip6(fragment(6, 0) + SYN6[:8], A6, O6, 44), UNREADABLE, id="first fragment without flags v6"),
    pytest.param(ip6(fragment(6, 8) + SYN6[8:], A6, O6, 44), UNREADABLE, id="fragment with flags v6"),
    pytest.param(ip6(fragment(6, 16) + SYN6[16:], A6, O6, 44), None, id="fragment behind the flags v6"),
    pytest.param(ip6(fragment(60, 0) + options(6), A6, O6, 44), UNREADABLE, id="first fragment without TCP"),
    pytest.param(ip6(fragment(60, 8) + options(6) + SYN6, A6, O6, 44), UNREADABLE, id="headers in a later fragment"),
    pytest.param(ip6(fragment(17, 8) + SYN6, A6, O6, 44), None, id="udp fragment v6"),
    pytest.param(ip6(SYN6, A6, O6, 58), None, id="icmp v6"),
    pytest.param(ip6(SYN6[:13], A6, O6), UNREADABLE, id="cut short v6"),
    pytest.param(ip6(b"", A6, O6, 60), UNREADABLE, id="cut short before a header"),
]


def ran(program: int, data: bytes) -> int:
    """BPF_PROG_TEST_RUN on a frame; the verdict."""
    buffer = ctypes.create_string_buffer(data, len(data))
    attribute = bytearray(80)
    struct.pack_into("=IIIIQ", attribute, 0, program, 0, len(data), 0, ctypes.addressof(buffer))
    kernel.call(kernel.PROG_TEST_RUN, attribute, "test run")
    verdict: int = struct.unpack_from("=I", attribute, 4)[0]
    return verdict


@pytest.fixture
def program(plane: Plane) -> Iterator[int]:
    fd = kernel.open_pin(plane.paths.programs / "guard")
    yield fd
    os.close(fd)


@pytest.mark.parametrize(("packet", "reason"), ROWS)
def test_verdict_and_its_counter(plane: Plane, program: int, packet: bytes, reason: Counter | None) -> None:
    kind = struct.pack("!H", 0x86DD if packet[0] >> 4 == 6 else 0x0800)
    with dropped(plane, *([] if reason is None else [reason])):
        assert ran(program, bytes(12) + kind + packet) == (NEXT if reason is None else DROP)


@pytest.mark.parametrize(
    ("ethertype", "reason"), [(0x8100, UNREADABLE), (0x88A8, UNREADABLE), (0x0806, None), (0x88CC, None)]
)
def test_frames_that_are_not_ip(plane: Plane, program: int, ethertype: int, reason: Counter | None) -> None:
    with dropped(plane, *([] if reason is None else [reason])):
        verdict = ran(program, bytes(12) + struct.pack("!HHH", ethertype, 0, 0x0800) + ip4(SYN4, A4, O4))
    assert verdict == (NEXT if reason is None else DROP)
