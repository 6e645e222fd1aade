"""A TCP client that knows nothing of the mesh; prints JSON about what it saw.

who HOST PORT           the addresses that both ends see
greet HOST PORT         what the server says before anything was sent
push HOST PORT BYTES    sends that much, half-closes, compares the server's checksum with its own
many HOST PORT N        N connections one after the other, each with one exchange; with "errors"
hold HOST PORT          one connection; lines of standard input must come back
"""

import hashlib
import json
import os
import socket
import sys
import time
from typing import Any

TIMEOUT_S = 20.0
BLOCK_BYTES = 1 << 20


def plain(address: tuple[str, int]) -> list[str | int]:
    """An address without the v4-mapped prefix."""
    return [address[0].removeprefix("::ffff:"), address[1]]


def who(sock: socket.socket) -> dict[str, Any]:
    """Ask the server whom it sees."""
    sock.sendall(b"who\n")
    return {
        "server": json.loads(read_all(sock)),
        "peername": plain(sock.getpeername()),
        "sockname": plain(sock.getsockname()),
    }


def greet(sock: socket.socket) -> dict[str, Any]:
    """Listen first."""
    return {"greeting": sock.recv(100).decode().strip()}


def push(sock: socket.socket, count: int) -> dict[str, Any]:
    """Send much, half-close, compare."""
    digest, started = hashlib.sha256(), time.monotonic()
    block = os.urandom(BLOCK_BYTES - 8)
    sock.sendall(b"sum\n")
    for number in range(count // BLOCK_BYTES):
        data = number.to_bytes(8, "big") + block
        digest.update(data)
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    answer = read_all(sock).decode().split()
    seconds = time.monotonic() - started
    return {"sent": [str(count), digest.hexdigest()], "received": answer, "seconds": round(seconds, 2)}


def many(host: str, port: int, count: int) -> dict[str, Any]:
    """Connect again and again, count what fails."""
    errors: dict[str, int] = {}
    for _ in range(count):
        try:
            with dial(host, port) as sock:
                who(sock)
        except (OSError, ValueError) as error:
            errors[type(error).__name__] = errors.get(type(error).__name__, 0) + 1
    return {"count": count, "errors": errors}


def hold(host: str, port: int) -> None:
    """Keep one connection, echo what is typed."""
    with dial(host, port) as sock, sock.makefile("rwb") as stream:
        stream.write(b"echo\n")
        stream.flush()
        print("open", flush=True)
        for line in sys.stdin:
            try:
                stream.write(line.encode())
                stream.flush()
                answer = stream.readline().decode().strip()
            except OSError as error:
                print(f"closed: {error.strerror}", flush=True)
                os._exit(0)  # there is nothing left to close in order
            print(answer or "closed: end of stream", flush=True)


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def dial(host: str, port: int) -> socket.socket:
    """A connection."""
    return socket.create_connection((host, port), TIMEOUT_S)


def main() -> None:
    """Do what the arguments say."""
    what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "hold":
        hold(host, port)
        return
    try:
        if what == "many":
            seen = many(host, port, int(sys.argv[4]))
        else:
            with dial(host, port) as sock:
                seen = push(sock, int(sys.argv[4])) if what == "push" else {"who": who, "greet": greet}[what](sock)
    except (OSError, ValueError) as error:
        seen = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
