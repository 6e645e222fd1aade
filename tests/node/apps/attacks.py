"""A hostile application of an enrolled pod: `attacks.py CASE ARGUMENT...`, one JSON line as result.

`dials` tries every way of connecting that may lead past the capture; `binds` every way of getting a mesh port;
`mesh_ports` dials those ports wherever they are.
"""

import ctypes
import json
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

PORT = 7001
MESH = (15001, 15006, 15008)
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

# Of the kernel's headers; Python's socket module does not have them.
SO_BINDTOIFINDEX = 62
IP_UNICAST_IF = 50
IP_TRANSPARENT = 19
IP_FREEBIND = 15
TCP_REPAIR = 19
TCP_FASTOPEN_CONNECT = 30
TCP_FASTOPEN_NO_COOKIE = 34
MPTCP = 262

libc = ctypes.CDLL(None, use_errno=True)


def tcp(family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    sock.settimeout(2)
    return sock


def tcp6() -> socket.socket:
    return tcp(socket.AF_INET6)


def disconnect(sock: socket.socket) -> socket.socket:
    libc.connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)
    return sock


def bound(sock: socket.socket, address: str) -> socket.socket:
    sock.bind((address, 0))
    return sock


def optioned(sock: socket.socket, level: int, name: int, value: int | bytes) -> socket.socket:
    sock.setsockopt(level, name, value)
    return sock


def used_locally(own: str, *, accepted: bool) -> socket.socket:
    """A socket that had a connection inside the pod, which is not captured."""
    with socket.create_server((own, 0)) as server:
        client = tcp()
        client.connect(server.getsockname())
        served, _ = server.accept()
    keep, end = (served, client) if accepted else (client, served)
    end.close()
    keep.settimeout(2)
    return disconnect(keep)


def reformed(to: str) -> socket.socket:
    """An IPv6 socket that becomes an IPv4 one while it is connected."""
    sock = tcp6()
    sock.connect((f"::ffff:{to}", PORT))
    sock.setsockopt(socket.IPPROTO_IPV6, 1, socket.AF_INET)  # IPV6_ADDRFORM
    again = socket.socket(fileno=disconnect(sock).detach())
    again.settimeout(2)
    return again


def opened_fast(sock: socket.socket, to: str) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    sock.sendto(b"fast open in clear", socket.MSG_FASTOPEN, (to, PORT))
    return sock


def connected(sock: socket.socket, to: str) -> socket.socket:
    sock.connect((to, PORT))
    return sock


def source_route(to: str) -> bytes:
    return bytes([131, 11, 4]) + socket.inet_aton(to) * 2 + b"\0"


def routing_header(to: str) -> bytes:
    return struct.pack("!BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + bytes(16) + socket.inet_pton(socket.AF_INET6, to)


def ways(to4: str, to6: str, own4: str, own6: str) -> dict[str, Callable[[], socket.socket]]:
    interface = socket.if_nametoindex("eth0")
    ip, ip6, level = socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.SOL_SOCKET
    return {
        "plain": lambda: connected(tcp(), to4),
        "v6": lambda: connected(tcp6(), to6),
        "mapped": lambda: connected(tcp6(), f"::ffff:{to4}"),
        "disconnected": lambda: connected(disconnect(connected(tcp(), to4)), to4),
        "used locally": lambda: connected(used_locally(own4, accepted=False), to4),
        "accepted": lambda: connected(used_locally(own4, accepted=True), to4),
        "reformed": lambda: connected(reformed(to4), to4),
        "fast open": lambda: opened_fast(tcp(), to4),
        "fast open v6": lambda: opened_fast(tcp6(), to6),
        "fast open on connect": lambda: connected(optioned(tcp(), socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1), to4),
        "mptcp": lambda: connected(tcp(protocol=MPTCP), to4),
        "bound": lambda: connected(bound(tcp(), own4), to4),
        "bound v6": lambda: connected(bound(tcp6(), own6), to6),
        "bound to loopback": lambda: connected(bound(tcp(), "127.9.9.9"), to4),
        "device": lambda: connected(optioned(tcp(), level, socket.SO_BINDTODEVICE, b"eth0"), to4),
        "device v6": lambda: connected(optioned(tcp6(), level, socket.SO_BINDTODEVICE, b"eth0"), to6),
        "index": lambda: connected(optioned(tcp(), level, SO_BINDTOIFINDEX, interface), to4),
        "unicast": lambda: connected(optioned(tcp(), ip, IP_UNICAST_IF, struct.pack("!I", interface)), to4),
        "mark": lambda: connected(optioned(tcp(), level, socket.SO_MARK, 0x539), to4),
        "link only": lambda: connected(optioned(tcp(), level, socket.SO_DONTROUTE, 1), to4),
        "transparent": lambda: connected(bound(optioned(tcp(), ip, IP_TRANSPARENT, 1), "10.99.99.99"), to4),
        "foreign": lambda: connected(bound(optioned(tcp(), ip, IP_FREEBIND, 1), "10.99.99.99"), to4),
        "repair": lambda: connected(optioned(tcp(), socket.IPPROTO_TCP, TCP_REPAIR, 1), to4),
        "any": lambda: connected(tcp(), "0.0.0.0"),
        "any v6": lambda: connected(tcp6(), "::"),
        "multicast": lambda: connected(tcp(), "224.0.0.1"),
        "source route": lambda: connected(optioned(tcp(), ip, socket.IP_OPTIONS, source_route(to4)), to4),
        "routing header": lambda: connected(optioned(tcp6(), ip6, socket.IPV6_RTHDR, routing_header(to6)), to6),
    }


def outcome(way: Callable[[], socket.socket]) -> str:
    try:
        with way() as sock:
            return "answered" if sock.recv(1024) else "closed"
    except OSError as error:
        return type(error).__name__


def dials(to4: str, to6: str, own4: str, own6: str, *only: str) -> dict[str, str]:
    """What became of each way of connecting."""
    return {name: outcome(way) for name, way in ways(to4, to6, own4, own6).items() if not only or name in only}


def listening(port: int, variant: str) -> socket.socket:
    """A listener made to end up on a mesh port."""
    sock = tcp(socket.AF_INET6 if variant.endswith("6") else socket.AF_INET, MPTCP if variant == "mptcp" else 0)
    for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT) if variant.startswith("reuse") else ():
        sock.setsockopt(socket.SOL_SOCKET, name, 1)
    if "device" in variant:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    if not variant.startswith("unbound"):
        sock.bind(("::" if variant.endswith("6") else "0.0.0.0", 0 if variant.startswith("range") else port))
    sock.listen()
    return sock


def held(variants: Iterable[str], port: int) -> list[tuple[str, socket.socket]]:
    got = []
    for variant in variants:
        with suppress(OSError):
            sock = listening(port, variant)
            if sock.getsockname()[1] == port:
                got.append((variant, sock))
    return got


def binds(peer: str) -> dict[str, list[str]]:
    """Which variants got which port, and which of these then heard of anything while `peer` was dialled."""
    got = []
    before = RANGE.read_text()
    for port in MESH:
        got += held(("bind", "bind6", "reuse", "reuse6", "reuse device", "mptcp"), port)
        RANGE.write_text(f"{port} {port}")
        got += held(("range", "range6", "range device", "unbound", "unbound6", "unbound device"), port)
        RANGE.write_text(before)
    dialled = outcome(lambda: connected(tcp(), peer))
    heard = []
    for name, sock in got:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.accept()
            heard.append(name)
    return {"got": [name for name, _ in got], "heard": heard, "dialled": [dialled]}


def mesh_ports(*addresses: str) -> dict[str, str]:
    """Dial the mesh's ports and say something that is no TLS."""

    def dial(address: str, port: int) -> socket.socket:
        sock = socket.create_connection((address, port), 2)
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 40)
        return sock

    return {
        f"{address} {port}": outcome(lambda address=address, port=port: dial(address, port))  # type: ignore[misc]
        for address in addresses
        for port in MESH
    }


CASES: dict[str, Callable[..., object]] = {case.__name__: case for case in (dials, binds, mesh_ports)}

if __name__ == "__main__":
    case, *arguments = sys.argv[1:]
    print(json.dumps(CASES[case](*arguments)))
