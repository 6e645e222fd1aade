"""Connections as the engine reports them, in Python's types."""

from dataclasses import dataclass
from enum import IntEnum

from mesh.addresses import IPAddress, with_port


class EventKind(IntEnum):
    """`enum cv_event_kind` of the engine's border."""

    OPENED = 1
    CLOSED = 2
    IDENTITY = 3
    DRAINED = 4
    POD_REMOVED = 5


class Path(IntEnum):
    """How a connection travelled."""

    NONE = 0
    PLAIN = 1
    HBONE = 2


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An address and port."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        return with_port(self.ip, self.port)


@dataclass(slots=True)
class ConnectionEvent:
    """One record of the engine; fields as `struct cv_event`, numbers name objects of the state."""

    kind: int
    direction: int = 0  # bpf.layout.Direction
    path: int = 0
    reason: int = 0
    opened: bool = False
    status: int = 0
    pod: int = 0
    source: int = 0
    destination: int = 0
    service: int = 0
    policy: int = 0
    dry_run_policy: int = 0
    connection: int = 0
    time_us: int = 0
    duration_us: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    downstream: SocketAddress | None = None
    original: SocketAddress | None = None
    upstream: SocketAddress | None = None
    hbone: SocketAddress | None = None
    identity: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FlowDelta:
    """What the kernel has counted on open sockets of an edge and not yet added to it; bytes."""

    source: int
    destination: int
    direction: int
    sent: int
    received: int
