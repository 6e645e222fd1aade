"""What ztunnel writes into the node's pinned maps: notes of its own sockets, listener slots, numbers, fallback bits.

The agent owns the programs and the enrolment; see bpf/README.md for who writes what. Used from the event loop only.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping

from bpf.layout import NoteKind
from bpf.plane import EdgeKey, EdgeStats, MapFull, Note, Plane, PlaneUnavailable
from mesh.addresses import from_bytes16, to_bytes16

log = logging.getLogger(__name__)

OWN = Note(kind=NoteKind.OWN)
RETRY_S = 0.1


async def open_plane(key: str) -> Plane:
    """The node's maps, as soon as the agent has loaded them; says once a minute what it waits for."""
    waited = 0.0
    while True:
        try:
            return Plane.open(key)
        except PlaneUnavailable as error:
            if waited % 60 < RETRY_S:
                log.warning("waiting for the node agent: %s", error)
            await asyncio.sleep(RETRY_S)
            waited += RETRY_S


class KernelMaps:
    """The plane as pods, state and telemetry need it."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    @property
    def notes_fd(self) -> int:
        """For the engine."""
        return self._plane.map_fd("notes")

    @property
    def flows_fd(self) -> int:
        """For the engine."""
        return self._plane.map_fd("flows")

    def mark_own(self, fd: int) -> None:
        """Let a socket bind the mesh's ports and connect without being captured."""
        self._plane.put_note(fd, OWN)

    def put_listener(self, netns_cookie: int, port: int, fd: int) -> None:
        """Steer what arrives for `port` in a namespace to this listener."""
        self._plane.put_listener(netns_cookie, port, fd)

    def numbers(self) -> dict[bytes, int]:
        """Numbers of workloads and services that an earlier ztunnel gave, by address."""
        return {to_bytes16(address): number for address, number in self._plane.workloads().items()}

    def write_numbers(self, numbers: Mapping[bytes, int]) -> None:
        """Say who has these addresses now; 0: nobody."""
        for raw, number in numbers.items():
            address = from_bytes16(raw)
            if number:
                try:
                    self._plane.put_workload(address, number)
                except MapFull as error:
                    log.error("flow metrics will not know %s: %s", address, error)
            else:
                self._plane.remove_workload(address)

    def keep_numbers(self, known: Iterable[bytes]) -> None:
        """Drop addresses that an earlier ztunnel knew and nobody announced since."""
        kept = set(known)
        self.write_numbers({raw: 0 for raw in self.numbers() if raw not in kept})

    def set_fallback(self, netns_cookie: int, is_open: bool) -> None:
        """Whether strangers may reach a pod while no ztunnel runs; unchanged costs nothing."""
        if self._plane.fallback(netns_cookie) != is_open:
            self._plane.set_fallback(netns_cookie, is_open)

    def edges(self) -> dict[EdgeKey, EdgeStats]:
        """The kernel's flow figures."""
        return self._plane.edges()

    def remove_edges(self, keys: Iterable[EdgeKey]) -> None:
        """Forget figures of workloads that nobody can name any more."""
        self._plane.remove_edges(keys)
