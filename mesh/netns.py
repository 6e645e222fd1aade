"""Network namespaces: entering one for a moment, and the cookie by which the kernel knows it.

A namespace belongs to a thread. `inside` therefore runs its function on a thread of its own (`apart`) that ends
afterwards, so that no other code ever finds itself in a foreign namespace.
"""

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h

_libc = ctypes.CDLL(None, use_errno=True)


def enter(netns_fd: int) -> None:
    """Move the calling thread into a network namespace for good; raises OSError."""
    if _libc.setns(netns_fd, CLONE_NEWNET) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"setns into network namespace: {os.strerror(errno)}")


def inside(netns: int | str | Path, function: Callable[[], T]) -> T:
    """Call `function` in a namespace, given as descriptor or path, and return what it returns or raises."""

    def run() -> T:
        fd = netns if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(fd)
            return function()
        finally:
            if fd is not netns:
                os.close(fd)

    return apart(run)


def apart(function: Callable[[], T]) -> T:
    """Call `function` on a thread of its own, which may change its namespace, and return what it returns or raises."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def is_network_namespace(fd: int) -> bool:
    """Whether a descriptor that somebody handed to us is a network namespace and nothing else."""
    try:
        return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def cookie_of_socket(sock: socket.socket) -> int:
    """The cookie of the namespace that a socket belongs to (never 0 for a pod)."""
    value: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
    return value


def cookie(netns: int | str | Path) -> int:
    """The cookie of a namespace, given as descriptor or path."""

    def read() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            return cookie_of_socket(sock)

    return inside(netns, read)
