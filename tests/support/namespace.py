"""A network namespace for one test, in which it can make sockets while its own thread stays where it is."""

import contextlib
import ctypes
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def namespace() -> Iterator[Callable[[Callable[[], socket.socket]], socket.socket]]:
    """A network namespace with lo up, and a way to make a socket in it."""
    jobs: list[tuple[Callable[[], socket.socket], list[socket.socket]]] = []
    wake, done, ready = threading.Semaphore(0), threading.Semaphore(0), threading.Semaphore(0)
    fds: list[int] = []

    def live() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert not libc.unshare(0x40000000)
        with socket.socket() as made:
            fcntl.ioctl(made, 0x8914, b"lo".ljust(16, b"\0") + (0x41).to_bytes(2, "little") + b"\0" * 22)
        fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        ready.release()
        while True:
            wake.acquire()
            if not jobs:
                return
            make, result = jobs.pop()
            result.append(make())
            done.release()

    thread = threading.Thread(target=live)
    thread.start()
    ready.acquire()

    def inside(make: Callable[[], socket.socket]) -> socket.socket:
        result: list[socket.socket] = []
        jobs.append((make, result))
        wake.release()
        done.acquire()
        return result[0]

    inside.fd = fds[0]  # type: ignore[attr-defined]
    try:
        yield inside
    finally:
        wake.release()
        thread.join()
        os.close(fds[0])
