"""Small moves that several tests make with sockets."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bpf.plane import Counter, Note, NoteKind, Plane
from mesh.addresses import IPAddress
from tests.bpf.topology import Place

PORT = 7000
DROPS = tuple(counter for counter in Counter if counter.name.startswith("GUARD_DROPPED"))


def count(plane: Plane, counter: Counter) -> int:
    return plane.counters()[counter]


@contextmanager
def dropped(plane: Plane, *wanted: Counter) -> Iterator[None]:
    """The guard drops for each of these reasons in the block, and for no other."""
    before = plane.counters()
    yield
    after = plane.counters()
    assert {counter for counter in DROPS if after[counter] > before[counter]} == set(wanted)


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def dial(place: Place, address: str, port: int = PORT, family: int | None = None) -> socket.socket:
    return connected(place.socket(family or family_of(address)), address, port)


def connected(sock: socket.socket, address: str, port: int) -> socket.socket:
    """The socket once it is connected; closed if it cannot be."""
    try:
        sock.connect((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def accepted(listener: socket.socket) -> socket.socket:
    listener.settimeout(3)
    return listener.accept()[0]


def is_quiet(listener: socket.socket) -> bool:
    """Nobody waits to be accepted."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


def as_client(
    plane: Plane, pod: Place, address: str, client: IPAddress, client_port: int, port: int = PORT
) -> socket.socket:
    """ztunnel's socket towards the application, which shall see `client`."""
    sock = pod.socket(family_of(address))
    plane.put_note(sock, Note(NoteKind.CLIENT, client, client_port, netns=pod.cookie))
    return connected(sock, address, port)


def run_in_child(place: Place, function: Callable[[], None]) -> None:
    """Call in a forked process that has entered a namespace; raises when it failed."""

    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                function()
            except BaseException:  # the parent is told by the status
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert place.run(fork) == 0
