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

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from mesh.netns import cookie as netns_cookie
from mesh.netns import cookie_of_socket, inside

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008

# Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
BACKLOG = 4096


# Fields of Listeners that are sockets, as a hand-over calls them.
KINDS = ("outbound4", "outbound6", "inbound", "hbone")


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

    def by_kind(self) -> dict[str, int]:
        """Descriptors by field name; whoever owns the sockets owns them."""
        found = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: one.fileno() for kind, one in found.items() if one is not None}

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


def adopt_listeners(netns: int, descriptors: Mapping[str, int]) -> Listeners | None:
    """Listeners that another ztunnel has opened in the namespace; takes the descriptors, also on failure.

    None when they are not what they should be: some missing, not listening, or of another namespace.
    """
    made: dict[str, socket.socket] = {}
    try:
        for kind, fd in descriptors.items():
            made[kind] = socket.socket(fileno=fd)
        expected = netns_cookie(netns)
        is_whole = made.keys() >= {"outbound4", "inbound", "hbone"} and all(map(_is_listening, made.values()))
        if is_whole and all(cookie_of_socket(one) == expected for one in made.values()):
            return Listeners(expected, made["outbound4"], made.get("outbound6"), made["inbound"], made["hbone"])
    except OSError:
        pass
    for kind, fd in descriptors.items():
        if kind in made:
            made[kind].close()
        else:
            with contextlib.suppress(OSError):
                os.close(fd)
    return None


def _is_listening(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


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
