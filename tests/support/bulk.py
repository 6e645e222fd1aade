"""Much data both ways, with checksums, and applications that echo."""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator

from tests.support.sockets import DEADLINE_S

CHUNK = bytes(range(256)) * 1024  # 256 KiB
CHUNKS = 512


def digest_to_end(sock: socket.socket) -> tuple[int, str]:
    """How many bytes come until a clean end, and their checksum."""
    digest, total = hashlib.sha256(), 0
    while part := sock.recv(1 << 18):
        digest.update(part)
        total += len(part)
    return total, digest.hexdigest()


def send_chunks(sock: socket.socket) -> tuple[int, str]:
    """Send numbered chunks; their length and checksum."""
    digest, total = hashlib.sha256(), 0
    for number in range(CHUNKS):
        part = number.to_bytes(8, "big") + CHUNK[8:]
        sock.sendall(part)
        digest.update(part)
        total += len(part)
    return total, digest.hexdigest()


def assert_bulk(client: socket.socket, server: socket.socket) -> None:
    """128 MiB each way at once arrive as they were sent.

    The server ends after the client has: Envoy resets a stream as soon as the application behind it ends.
    """
    sent: dict[str, tuple[int, str]] = {}
    received: dict[str, tuple[int, str]] = {}

    def upload() -> None:
        sent["up"] = send_chunks(client)
        client.shutdown(socket.SHUT_WR)

    threads = [
        threading.Thread(target=upload),
        threading.Thread(target=lambda: sent.update(down=send_chunks(server))),
        threading.Thread(target=lambda: received.update(up=digest_to_end(server))),
        threading.Thread(target=lambda: received.update(down=digest_to_end(client))),
    ]
    client.settimeout(60)
    server.settimeout(60)
    for thread in threads:
        thread.start()
    for thread in threads[:3]:
        thread.join()
    server.shutdown(socket.SHUT_WR)
    threads[3].join()
    assert received == sent
    assert sent["up"][0] == sent["down"][0] == CHUNKS * len(CHUNK)


@contextlib.contextmanager
def echo_server(listener: socket.socket) -> Iterator[None]:
    """Echoes every connection of a listener, each on its own thread, ends when the client has ended."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    listener.settimeout(0.1)

    def echo(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while part := sock.recv(1 << 18):
                sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            sock.settimeout(2 * DEADLINE_S)
            threads.append(threading.Thread(target=echo, args=(sock,), name="echo"))
            threads[-1].start()

    server = threading.Thread(target=serve, name="echo server")
    server.start()
    try:
        yield
    finally:
        stop.set()
        server.join()
        for thread in threads:
            thread.join(3 * DEADLINE_S)
