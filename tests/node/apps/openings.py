"""A hostile application that opens TCP connections without a TCP socket: `openings.py CASE ADDRESS OWN`.

Prints `sent` when the kernel took the packet. The segments carry right checksums, so that only a guard stops them.
"""

import socket
import struct
import subprocess
import sys
from collections.abc import Callable

PORT = 7001
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def segment(address: str, own: str) -> bytes:
    """A SYN."""
    header = struct.pack("!HHIIBBHHH", 41000, PORT, 7, 0, 0x50, 2, 64240, 0, 0)
    pseudo = socket.inet_pton(family(own), own) + socket.inet_pton(family(address), address) + struct.pack("!II", 20, 6)
    return header[:16] + struct.pack("!H", checksum(pseudo + header)) + header[18:]


def packet(address: str, own: str) -> bytes:
    ends = socket.inet_pton(family(own), own) + socket.inet_pton(family(address), address)
    if ":" in address:
        return struct.pack("!IHBB", 0x60000000, 20, 6, 64) + ends + segment(address, own)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 9, 0, 64, 6, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + segment(address, own)


def gateway() -> bytes:
    """The link-layer address of the node's end."""
    shown = subprocess.run(
        ["ip", "neighbour", "show", "dev", "eth0"], capture_output=True, text=True, check=True
    ).stdout
    return bytes.fromhex(shown.split("lladdr ")[1].split()[0].replace(":", ""))


def raw(address: str, own: str) -> None:
    with socket.socket(family(address), socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        sock.sendto(segment(address, own), (address, 0))


def framed(address: str, own: str, tags: bytes = b"") -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        sock.bind(("eth0", 0))
        kind = struct.pack("!H", 0x86DD if ":" in address else 0x0800)
        sock.send(gateway() + b"\2" + bytes(5) + tags + kind + packet(address, own))


def tagged(address: str, own: str) -> None:
    framed(address, own, struct.pack("!HHHH", 0x88A8, 0, 0x8100, 0))


CASES: dict[str, Callable[[str, str], None]] = {case.__name__: case for case in (raw, framed, tagged)}

if __name__ == "__main__":
    CASES[sys.argv[1]](sys.argv[2], sys.argv[3])
    print("sent")
