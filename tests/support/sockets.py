"""Sockets that stand for pods and their applications, and what applications do with them, in a line each.

Every address is one of 127/8 that this process drew, so that tests that run side by side do not meet.
"""

import itertools
import os
import random
import socket
import struct
import time
from collections.abc import Callable

HBONE = 15008
DEADLINE_S = 10.0

_draws = random.Random(os.getpid() ^ time.monotonic_ns())
_hosts = itertools.count(1)
_net = f"127.{_draws.randrange(16, 250)}.{_draws.randrange(0, 250)}"


def new_ip() -> str:
    """A loopback address that no other test uses."""
    n = next(_hosts)
    a, b, c = _net.split(".")
    return f"{a}.{b}.{(int(c) + n // 250) % 250}.{n % 250 + 1}"


def listen(ip: str, port: int = 0, backlog: int = 4096) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ip, port))
        made.listen(backlog)
        made.settimeout(DEADLINE_S)
    except OSError:
        made.close()
        raise
    return made


def connect(address: tuple[str, int], source: str | None = None) -> socket.socket:
    return socket.create_connection(address, DEADLINE_S, (source, 0) if source else None)


def accept(listener: socket.socket) -> socket.socket:
    made, _ = listener.accept()
    made.settimeout(DEADLINE_S)
    return made


def reset(made: socket.socket) -> None:
    """Close with a reset."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()


def port_of(made: socket.socket) -> int:
    return int(made.getsockname()[1])


def read_exactly(made: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = made.recv(size - len(parts))
        if not part:
            raise EOFError(f"{len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)


def read_to_end(made: socket.socket) -> bytes:
    parts = bytearray()
    while part := made.recv(1 << 18):
        parts += part
    return bytes(parts)


def is_reset(made: socket.socket) -> bool:
    """Reads until the connection ends: by a reset (never a clean end)?"""
    try:
        read_to_end(made)
    except ConnectionResetError:
        return True
    return False


def is_refused(dial: Callable[[], socket.socket]) -> bool:
    """Is a new connection reset, as soon as in connect() or later?"""
    try:
        with dial() as made:
            return is_reset(made)
    except ConnectionResetError:
        return True


def until(holds: Callable[[], bool], what: str = "the condition", timeout_s: float = DEADLINE_S) -> None:
    """Waits for what another thread or process makes true."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.002)
