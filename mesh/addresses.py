"""IP addresses in the 16-byte form that maps and the engine use: IPv4 stands as ::ffff:a.b.c.d."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

IPAddress = IPv4Address | IPv6Address

# A node talks to the same few thousand addresses again and again, and making one costs more than looking it up.
REMEMBERED = 4096
_V4_PREFIX = bytes(10) + b"\xff\xff"


def to_bytes16(address: IPAddress | str) -> bytes:
    """The 16 bytes of an address; raises ValueError for text that is none."""
    parsed = ip_address(address) if isinstance(address, str) else address
    return _V4_PREFIX + parsed.packed if parsed.version == 4 else parsed.packed


@lru_cache(REMEMBERED)
def from_bytes16(raw: bytes) -> IPAddress:
    """The address of 16 bytes; a v4-mapped one comes back as IPv4."""
    if len(raw) != 16:
        raise ValueError(f"an address takes 16 bytes, not {len(raw)}")
    return IPv4Address(raw[12:]) if raw.startswith(_V4_PREFIX) else IPv6Address(raw)


def from_packed(raw: bytes) -> IPAddress:
    """The address of 4 or 16 bytes, as wire messages carry it; raises ValueError for other lengths."""
    if len(raw) == 4:
        return IPv4Address(raw)
    return from_bytes16(raw)


@lru_cache(REMEMBERED)
def _text(address: IPAddress) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def with_port(address: IPAddress, port: int) -> str:
    """`1.2.3.4:80` or `[fd00::1]:80`."""
    return f"{_text(address)}:{port}"
