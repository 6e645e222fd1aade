"""The structures of bpf/include/maps.h, restated; tests/unit/bpf compiles that header and holds the two equal."""

import ctypes
from enum import IntEnum, IntFlag

SCHEMA = 2  # of the pinned maps: raised when a key or value changes its meaning or layout
HISTOGRAM_BUCKETS = 24
FAILURES = 4


class Port(IntEnum):
    """The mesh's ports inside a pod."""

    OUTBOUND = 15001
    INBOUND = 15006
    HBONE = 15008


class NoteKind(IntEnum):
    """What a socket's note says."""

    NONE = 0
    CAPTURED = 1
    OWN = 2
    CLIENT = 3
    PROBE = 4
    ACCEPTED = 5
    SERVED = 6


class Direction(IntEnum):
    """At which end of an edge a socket is counted."""

    NONE = 0
    OUTBOUND = 1
    INBOUND = 2
    TUNNEL = 3


class PodFlag(IntFlag):
    """What is done to a pod's connections."""

    CAPTURE = 1
    INBOUND = 2


class RefusedPort(IntFlag):
    """Mesh ports that a process of a pod wanted to bind."""

    OUTBOUND = 1
    INBOUND = 2
    HBONE = 4

    @property
    def numbers(self) -> tuple[int, ...]:
        """The ports themselves."""
        return tuple(Port[str(flag.name)].value for flag in RefusedPort if flag in self)


class Failure(IntEnum):
    """Why a counted connect failed."""

    REFUSED = 0
    TIMEOUT = 1
    ABORTED = 2
    DENIED = 3


class FlowFlag(IntFlag):
    """What the kernel's byte counters hold besides payload."""

    ACTIVE = 1
    FIN_ACKED = 2
    FIN_RECEIVED = 4


class Counter(IntEnum):
    """The exits of programs, in the order of `enum cv_counter`."""

    CONNECT_CAPTURED = 0
    CONNECT_PASSED = 1
    CONNECT_OWN = 2
    CONNECT_PROBE = 3
    CONNECT_REFUSED_NOTE = 4
    CONNECT_REFUSED_DEVICE = 5
    BIND_REFUSED = 6
    CARRY_PUBLISHED = 7
    CARRY_MOVED = 8
    CARRY_DROPPED = 9
    CARRY_FULL = 10
    INBOUND_LOOPBACK = 11
    INBOUND_EXPECTED = 12
    INBOUND_STEERED = 13
    INBOUND_FALLBACK = 14
    INBOUND_REFUSED = 15
    INBOUND_UNKNOWN_ADDRESS = 16
    INBOUND_BAD_LISTENER = 17
    EDGE_OVERFLOW = 18
    INBOUND_DRAINING = 19
    CARRY_POD_FULL = 20
    GUARD_PASSED = 21
    GUARD_DROPPED_STRANGER = 22
    GUARD_DROPPED_FORWARDED = 23
    GUARD_DROPPED_REWRITTEN = 24
    GUARD_DROPPED_UNREADABLE = 25


ADDRESS = ctypes.c_uint8 * 16


class CNote(ctypes.Structure):
    """struct cv_note"""

    _fields_ = (
        ("cookie", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("orig", ADDRESS),
        ("own", ADDRESS),
        ("orig_port", ctypes.c_uint16),  # network order
        ("kind", ctypes.c_uint8),
        ("direction", ctypes.c_uint8),
        ("source", ctypes.c_uint32),
        ("destination", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class CTuple(ctypes.Structure):
    """struct cv_tuple"""

    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("local", ADDRESS),
        ("remote", ADDRESS),
        ("local_port", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint16),
        ("reserved", ctypes.c_uint32),
    )


class CExpectedKey(ctypes.Structure):
    """struct cv_expected_key"""

    _fields_ = (
        ("local", ADDRESS),
        ("remote", ADDRESS),
        ("local_port", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint16),
        ("reserved", ctypes.c_uint32),
    )


class CExpected(ctypes.Structure):
    """struct cv_expected"""

    _fields_ = (("cookie", ctypes.c_uint64), ("netns", ctypes.c_uint64))


class CPod(ctypes.Structure):
    """struct cv_pod"""

    _fields_ = (("ip4", ADDRESS), ("ip6", ADDRESS), ("flags", ctypes.c_uint32), ("refused_ports", ctypes.c_uint32))


class CAddress(ctypes.Structure):
    """struct cv_address"""

    _fields_ = (("netns", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("reserved", ctypes.c_uint32))


class CListenerKey(ctypes.Structure):
    """struct cv_listener_key"""

    _fields_ = (("netns", ctypes.c_uint64), ("port", ctypes.c_uint32), ("reserved", ctypes.c_uint32))


class CNode(ctypes.Structure):
    """struct cv_node"""

    _fields_ = (("netns", ctypes.c_uint64), ("reserved", ctypes.c_uint64))


class CEdge(ctypes.Structure):
    """struct cv_edge"""

    _fields_ = (
        ("source", ctypes.c_uint32),
        ("destination", ctypes.c_uint32),
        ("direction", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class CEdgeStats(ctypes.Structure):
    """struct cv_edge_stats"""

    _fields_ = (
        ("opened", ctypes.c_uint64),
        ("closed", ctypes.c_uint64),
        ("failed", ctypes.c_uint64 * FAILURES),
        ("sent", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("retransmits", ctypes.c_uint64),
        ("connect_us_sum", ctypes.c_uint64),
        ("rtt_us_sum", ctypes.c_uint64),
        ("connect_us", ctypes.c_uint64 * HISTOGRAM_BUCKETS),
        ("rtt_us", ctypes.c_uint64 * HISTOGRAM_BUCKETS),
    )


class CFlow(ctypes.Structure):
    """struct cv_flow"""

    _fields_ = (
        ("connect_ns", ctypes.c_uint64),
        ("sent", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("retransmits", ctypes.c_uint64),
        ("sampled_ns", ctypes.c_uint64),
        ("opened", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "cv_note": CNote,
    "cv_tuple": CTuple,
    "cv_expected_key": CExpectedKey,
    "cv_expected": CExpected,
    "cv_pod": CPod,
    "cv_address": CAddress,
    "cv_listener_key": CListenerKey,
    "cv_node": CNode,
    "cv_edge": CEdge,
    "cv_edge_stats": CEdgeStats,
    "cv_flow": CFlow,
}
