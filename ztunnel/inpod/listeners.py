"""The four listening sockets that serve one pod, made inside its network namespace.

| port  | bound to            | who reaches it                                                      |
|-------|---------------------|---------------------------------------------------------------------|
| 15001 | all of 127/8 on lo  | the pod's own connects, rewritten by `connect`; IPv4                |
| 15001 | ::1                 | the same for IPv6                                                   |
| 15006 | any, both families  | plain connections from the network, steered by `inbound`            |
| 15008 | any, both families  | HBONE from the network, steered by `inbound`, and from the pod itself |

No SO_REUSEPORT: an application of the pod could join the group and be handed half of the connections. Each socket
carries the `own` note before it binds, because in an enrolled pod nobody else may bind these ports.
"""

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from mesh.netns import cookie_of_socket, inside

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008

# Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
BACKLOG = 4096


class PortTaken(Exception):
    """The pod itself listens on a port of the mesh: it cannot be enrolled."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Open listeners of one pod; whoever holds this owns them. IPv6 ones are None where the pod has none."""

    netns_cookie: int
    outbound4: socket.socket
    outbound6: socket.socket | None
    inbound: socket.socket
    hbone: socket.socket

    def __iter__(self) -> Iterator[socket.socket]:
        yield from filter(None, (self.outbound4, self.outbound6, self.inbound, self.hbone))

    def close(self) -> None:
        """Close all that are still ours."""
        for listener in self:
            listener.close()


MarkOwn = Callable[[int], None]


def open_listeners(netns: int, mark_own: MarkOwn) -> Listeners:
    """Listen in the namespace of descriptor `netns`; raises PortTaken or OSError, and then holds nothing.

    `mark_own` writes the `own` note of a socket, given its descriptor.
    """

    def run() -> Listeners:
        with ExitStack() as undo:
            listeners = _open_all(mark_own, undo)
            undo.pop_all()
            return listeners

    return inside(netns, run)


def _open_all(mark_own: MarkOwn, undo: ExitStack) -> Listeners:
    def listen(family: socket.AddressFamily, address: str, port: int, *, loopback: bool = False) -> socket.socket:
        return undo.enter_context(_listen(family, address, port, mark_own, loopback))

    outbound4 = listen(socket.AF_INET, "0.0.0.0", OUTBOUND_PORT, loopback=True)
    cookie = cookie_of_socket(outbound4)
    if not _has_ipv6():
        inbound = listen(socket.AF_INET, "0.0.0.0", INBOUND_PORT)
        return Listeners(cookie, outbound4, None, inbound, listen(socket.AF_INET, "0.0.0.0", HBONE_PORT))
    return Listeners(
        cookie,
        outbound4,
        listen(socket.AF_INET6, "::1", OUTBOUND_PORT),
        listen(socket.AF_INET6, "::", INBOUND_PORT),
        listen(socket.AF_INET6, "::", HBONE_PORT),
    )


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _listen(family: socket.AddressFamily, address: str, port: int, mark_own: MarkOwn, loopback: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        mark_own(listener.fileno())
        # Connections of an earlier ztunnel that linger in TIME_WAIT must not keep this one from its ports.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if loopback:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address == "::1" else 0)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise PortTaken(f"port {port} is taken in the pod: it cannot be enrolled while it listens there") from error
        raise
    return listener
