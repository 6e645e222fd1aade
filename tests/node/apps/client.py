"""A plain TCP client, run unmodified inside a pod: `client.py CASE HOST PORT [ARGUMENT]`, one JSON line as result."""

import hashlib
import json
import socket
import sys
import time


def dial(host: str, port: str, seconds: str = "15") -> socket.socket:
    return socket.create_connection((host, int(port)), timeout=float(seconds))


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def names(host: str, port: str) -> dict[str, object]:
    """Who the server saw, and what both names of our socket say."""
    with dial(host, port) as sock:
        seen = json.loads(sock.makefile("rb").readline())
        return {"server": seen, "peer": sock.getpeername()[:2], "own": sock.getsockname()[:2]}


def half_close(host: str, port: str) -> dict[str, object]:
    with dial(host, port) as sock:
        line = sock.makefile("rb").readline()
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        return {"first": line.decode(), "rest": read_all(sock).decode()}


def banner(host: str, port: str) -> dict[str, object]:
    with dial(host, port) as sock:
        return {"banner": sock.recv(1024).decode()}


def digest(host: str, port: str, size: str) -> dict[str, object]:
    """Send so many bytes; what we sent and what the server says it got."""
    local = hashlib.sha256()
    block = bytes(range(256)) * 1024
    left = int(size)
    with dial(host, port) as sock:
        while left > 0:
            part = block[:left]
            sock.sendall(part)
            local.update(part)
            left -= len(part)
        sock.shutdown(socket.SHUT_WR)
        return {"sent": local.hexdigest(), "got": read_all(sock).decode()}


def fetch(host: str, port: str, size: str) -> dict[str, object]:
    with dial(host, port) as sock:
        sock.sendall(size.encode() + b"\n")
        return {"bytes": len(read_all(sock))}


def reset(host: str, port: str) -> dict[str, object]:
    """How an end by reset looks from here."""
    with dial(host, port) as sock:
        sock.sendall(b"go\n")
        try:
            return {"end": "clean", "data": read_all(sock).decode()}
        except ConnectionResetError:
            return {"end": "reset"}


def stay(host: str, port: str, seconds: str) -> dict[str, object]:
    """Talk every 20 ms for so long; how it ended and after how many exchanges."""
    count = 0
    started = time.monotonic()
    with dial(host, port) as sock:
        reader = sock.makefile("rb")
        reader.readline()
        print(json.dumps({"open": sock.getsockname()[:2]}), flush=True)
        try:
            while time.monotonic() - started < float(seconds):
                sock.sendall(b"tick\n")
                if reader.readline() != b"tick\n":
                    return {"end": "closed", "count": count, "after": time.monotonic() - started}
                count += 1
                time.sleep(0.02)
        except OSError as error:
            return {"end": type(error).__name__, "count": count, "after": time.monotonic() - started}
        return {"end": "done", "count": count, "after": time.monotonic() - started}


def many(host: str, port: str, count: str) -> dict[str, object]:
    """Open, ask and close so many connections one after the other."""
    failed = 0
    for _ in range(int(count)):
        try:
            with dial(host, port) as sock:
                failed += not sock.makefile("rb").readline()
        except OSError:
            failed += 1
    return {"failed": failed}


def try_connect(host: str, port: str, *seconds: str) -> dict[str, object]:
    """What becomes of one connection, and how soon; seconds: how long it may take."""
    started = time.monotonic()
    try:
        with dial(host, port, *seconds) as sock:
            data = sock.recv(1024)
            outcome = "answered" if data else "closed"
    except OSError as error:
        outcome = type(error).__name__
    return {"outcome": outcome, "after": time.monotonic() - started}


CASES = {case.__name__: case for case in (names, half_close, banner, digest, fetch, reset, stay, many, try_connect)}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](*sys.argv[2:])), flush=True)
