"""Connections that are counted, and every way in which one ends."""

import socket
import struct
import time
from collections.abc import Callable

import pytest

from bpf.plane import Direction, EdgeKey, EdgeStats, Note, NoteKind, Plane
from tests.bpf.topology import Place

RESET = struct.pack("ii", 1, 0)


def upstream(plane: Plane, pod: Place, kind: NoteKind, direction: Direction) -> socket.socket:
    """A socket of ztunnel's, counted from its connect on."""
    sock = pod.socket()
    note = Note(kind, pod.address4, 999, netns=pod.cookie, direction=direction, source=11, destination=22)
    plane.put_note(sock, note)
    return sock


def label(plane: Plane, sock: socket.socket) -> None:
    """What ztunnel does once it has decided."""
    note = plane.note(sock)
    assert note is not None
    plane.put_note(
        sock,
        Note(
            note.kind,
            note.address,
            note.port,
            note.netns,
            direction=Direction.OUTBOUND,
            source=11,
            destination=22,
            cookie=note.cookie,
        ),
    )


def drained(sock: socket.socket) -> int:
    """Read to the end."""
    total = 0
    while data := sock.recv(1 << 16):
        total += len(data)
    return total


def settled(plane: Plane, key: EdgeKey, closed: int = 1) -> EdgeStats:
    """The figures once `closed` connections have ended: the last ACK may still be on its way."""
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        stats = plane.edges().get(key)
        if stats is not None and stats.closed >= closed:
            return stats
    raise AssertionError(f"not closed in time: {plane.edges().get(key)}")


def exchange(ours: socket.socket, theirs: socket.socket, there: int, back: int) -> None:
    """`there` bytes one way, then `back` the other, all read."""
    for sender, receiver, size in ((ours, theirs, there), (theirs, ours, back)):
        left = size
        while left:
            on_the_way = sender.send(bytes(min(left, 1 << 15)))
            left -= on_the_way
            while on_the_way:
                got = len(receiver.recv(on_the_way))
                assert got
                on_the_way -= got


End = Callable[[socket.socket, socket.socket], None]


def dialler_first(ours: socket.socket, theirs: socket.socket) -> None:
    ours.close()
    drained(theirs)
    theirs.close()


def acceptor_first(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.close()
    drained(ours)
    ours.close()


def half_close_then_end(ours: socket.socket, theirs: socket.socket) -> None:
    ours.shutdown(socket.SHUT_WR)
    drained(theirs)
    theirs.close()
    drained(ours)
    ours.close()


def reset_by_acceptor(ours: socket.socket, theirs: socket.socket) -> None:
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    theirs.close()
    with pytest.raises(ConnectionResetError):
        drained(ours)
    ours.close()


def reset_by_dialler(ours: socket.socket, theirs: socket.socket) -> None:
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ours.close()


def reset_after_half_close(ours: socket.socket, theirs: socket.socket) -> None:
    """FIN_WAIT2 ends by a reset: no FIN was received."""
    ours.shutdown(socket.SHUT_WR)
    drained(theirs)
    reset_by_acceptor(ours, theirs)


def reset_of_a_half_closed_peer(ours: socket.socket, theirs: socket.socket) -> None:
    """CLOSE_WAIT ends by a reset: a FIN was received, none was sent."""
    theirs.shutdown(socket.SHUT_WR)
    drained(ours)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ours.close()


ENDS = [
    dialler_first,
    acceptor_first,
    half_close_then_end,
    reset_by_acceptor,
    reset_by_dialler,
    reset_after_half_close,
    reset_of_a_half_closed_peer,
]
