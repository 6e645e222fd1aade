"""The entries of maps as values: what `bpf.plane` takes and returns."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from bpf.layout import CEdge, CFlow, CNote, CPod, Direction, Failure, FlowFlag, NoteKind, PodFlag, RefusedPort
from mesh.addresses import IPAddress, from_bytes16, to_bytes16

NO_ADDRESS = bytes(16)


def address_or_none(raw: bytes) -> IPAddress | None:
    """The address of 16 bytes; all zero stands for none."""
    return None if raw == NO_ADDRESS else from_bytes16(raw)


@dataclass(frozen=True, slots=True)
class Pod:
    """An entry of `pods`."""

    netns: int
    ip4: IPAddress | None
    ip6: IPAddress | None
    flags: PodFlag
    refused_ports: RefusedPort = RefusedPort(0)  # as the kernel says; never written

    def pack(self) -> bytes:
        """The kernel's form of the value."""
        raw = CPod(flags=self.flags)
        raw.ip4[:] = NO_ADDRESS if self.ip4 is None else to_bytes16(self.ip4)
        raw.ip6[:] = NO_ADDRESS if self.ip6 is None else to_bytes16(self.ip6)
        return bytes(raw)

    @classmethod
    def unpack(cls, netns: int, data: bytes) -> "Pod":
        """From the kernel's form."""
        raw = CPod.from_buffer_copy(data)
        ip4, ip6 = address_or_none(bytes(raw.ip4)), address_or_none(bytes(raw.ip6))
        return cls(netns, ip4, ip6, PodFlag(raw.flags), RefusedPort(raw.refused_ports))


@dataclass(frozen=True, slots=True)
class Address:
    """An entry of `addresses`."""

    netns: int
    flags: PodFlag


@dataclass(frozen=True, slots=True)
class Note:
    """What a socket carries. `address` and `port` are the destination dialled, or the true client; `own` the pod's."""

    kind: NoteKind
    address: IPAddress | None = None
    port: int = 0
    netns: int = 0
    direction: Direction = Direction.NONE
    source: int = 0
    destination: int = 0
    cookie: int = 0
    own: IPAddress | None = None

    def pack(self) -> bytes:
        """The kernel's form."""
        raw = CNote(
            cookie=self.cookie,
            netns=self.netns,
            orig_port=socket.htons(self.port),
            kind=self.kind,
            direction=self.direction,
            source=self.source,
            destination=self.destination,
        )
        if self.address is not None:
            raw.orig[:] = to_bytes16(self.address)
        if self.own is not None:
            raw.own[:] = to_bytes16(self.own)
        return bytes(raw)

    @classmethod
    def unpack(cls, data: bytes) -> "Note":
        """From the kernel's form."""
        raw = CNote.from_buffer_copy(data)
        return cls(
            kind=NoteKind(raw.kind),
            address=address_or_none(bytes(raw.orig)),
            port=socket.ntohs(raw.orig_port),
            netns=raw.netns,
            direction=Direction(raw.direction),
            source=raw.source,
            destination=raw.destination,
            cookie=raw.cookie,
            own=address_or_none(bytes(raw.own)),
        )


@dataclass(frozen=True, slots=True)
class Flow:
    """What of a socket stands in its edge already, as the socket sees it."""

    sent: int
    received: int
    retransmits: int
    is_opened: bool
    flags: FlowFlag

    @classmethod
    def unpack(cls, data: bytes) -> "Flow":
        """From the kernel's form."""
        raw = CFlow.from_buffer_copy(data)
        return cls(raw.sent, raw.received, raw.retransmits, bool(raw.opened), FlowFlag(raw.flags))


@dataclass(frozen=True, slots=True)
class EdgeKey:
    """From one workload to another, by number (0: unknown)."""

    source: int
    destination: int
    direction: Direction

    def pack(self) -> bytes:
        """The kernel's form."""
        return bytes(CEdge(source=self.source, destination=self.destination, direction=self.direction))

    @classmethod
    def unpack(cls, data: bytes) -> "EdgeKey":
        """From the kernel's form."""
        raw = CEdge.from_buffer_copy(data)
        return cls(raw.source, raw.destination, Direction(raw.direction))


@dataclass(frozen=True, slots=True)
class EdgeStats:
    """The figures of an edge, summed over CPUs. `sent` goes from source to destination."""

    opened: int
    closed: int
    failed: Mapping[Failure, int]
    sent: int
    received: int
    retransmits: int
    connect_us_sum: int
    rtt_us_sum: int
    connect_us: tuple[int, ...] = field(repr=False)  # bucket i: [2^i, 2^(i+1)) microseconds
    rtt_us: tuple[int, ...] = field(repr=False)

    @classmethod
    def of_words(cls, words: list[int]) -> "EdgeStats":
        """From the words of the kernel's structure, in its order."""
        opened, closed, *rest = words
        failed, rest = rest[: len(Failure)], rest[len(Failure) :]
        sent, received, retransmits, connect_us_sum, rtt_us_sum, *buckets = rest
        half = len(buckets) // 2
        return cls(
            opened=opened,
            closed=closed,
            failed={failure: failed[failure] for failure in Failure},
            sent=sent,
            received=received,
            retransmits=retransmits,
            connect_us_sum=connect_us_sum,
            rtt_us_sum=rtt_us_sum,
            connect_us=tuple(buckets[:half]),
            rtt_us=tuple(buckets[half:]),
        )
