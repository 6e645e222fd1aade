"""Packets with descriptors over a unix SOCK_SEQPACKET socket, on the asyncio loop.

`PacketSocket` owns its socket. One task reads and one writes at a time. What cannot be taken whole (a packet or its
descriptors cut by the kernel) is a fault, and nothing of it is left open.
"""

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Room for more descriptors than anybody may send, so that a peer that sends too many is seen instead of cut short.
_MAX_DESCRIPTORS = 8
_INT_BYTES = array.array("i").itemsize


class PacketCut(Exception):
    """A packet or its descriptors did not fit."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What arrived in one piece; whoever holds it owns the descriptors (close-on-exec is set)."""

    data: bytes
    descriptors: tuple[int, ...]

    def close(self) -> None:
        """Close the descriptors of a packet that nobody wants."""
        for fd in self.descriptors:
            os.close(fd)


class PacketSocket:
    """A connected SOCK_SEQPACKET socket; closing it is final."""

    def __init__(self, sock: socket.socket, max_bytes: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._max_bytes = max_bytes
        self._waiting: set[asyncio.Future[None]] = set()

    def close(self) -> None:
        """Close the socket; who waits on it gets ConnectionAbortedError. May be called again."""
        if self._sock.fileno() < 0:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        self._sock.close()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(ConnectionAbortedError("closed on our side"))

    async def receive(self) -> Packet | None:
        """The next packet; None at the end. Raises PacketCut and OSError."""
        while True:
            try:
                return receive(self._sock, self._max_bytes)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_reader, loop.remove_reader)

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one packet whole; the descriptors stay the caller's. Raises OSError."""
        while True:
            try:
                return send(self._sock, data, descriptors)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_writer, loop.remove_writer)

    async def _ready(self, watch: Callable[..., None], unwatch: Callable[[socket.socket], bool]) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(ready)
        watch(self._sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._sock.fileno() >= 0:
                unwatch(self._sock)


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet with descriptors; raises OSError (EPIPE instead of a signal)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
    assert sent == len(data), "SOCK_SEQPACKET sends a packet whole or not at all"


def receive(sock: socket.socket, max_bytes: int) -> Packet | None:
    """Take one packet with its descriptors; None at the end of the stream. Raises PacketCut and OSError."""
    data, ancillary, flags, _ = sock.recvmsg(
        max_bytes, socket.CMSG_SPACE(_MAX_DESCRIPTORS * _INT_BYTES), socket.MSG_CMSG_CLOEXEC
    )
    descriptors: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors += array.array("i", payload[: len(payload) - len(payload) % _INT_BYTES])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
        if flags & socket.MSG_TRUNC:
            raise PacketCut(f"a packet is longer than {max_bytes} bytes")
        raise PacketCut(f"a packet carries more than {_MAX_DESCRIPTORS} descriptors")
    return Packet(data, tuple(descriptors)) if data or descriptors else None
