"""Packets made by hand: TCP segments in IPv4 and IPv6, with the checksums that a receiver asks for."""

import socket
import struct

from tests.bpf.dialling import PORT, family_of

SYN, RST, ACK = 0x02, 0x04, 0x10


def checksum(data: bytes) -> int:
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(source: str, destination: str, flags: int = SYN, sport: int = 40000, dport: int = PORT) -> bytes:
    """A TCP header with the checksum that its addresses ask for."""
    family = family_of(source)
    header = struct.pack("!HHIIBBHHH", sport, dport, 7, 0, 0x50, flags, 64240, 0, 0)
    pseudo = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    pseudo += struct.pack("!II", len(header), 6)
    return header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]


def ip4(
    payload: bytes, source: str, destination: str, fragment: int = 0, options: bytes = b"", protocol: int = 6
) -> bytes:
    length = 20 + len(options)
    raw = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | length // 4, 0, length + len(payload), 77, fragment, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    ) + options  # fmt: skip
    return raw[:10] + struct.pack("!H", checksum(raw)) + raw[12:] + payload


def ip6(payload: bytes, source: str, destination: str, following: int = 6) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 0x60000000, len(payload), following, 64) + addresses + payload
