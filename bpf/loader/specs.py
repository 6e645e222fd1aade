"""What a set consists of: its programs with their hooks, and its maps with their shapes. Facts, no objects."""

import ctypes
from dataclasses import dataclass

from bpf import layout
from bpf.kernel import MapShape

SCHED_CLS, CGROUP_SOCK_ADDR, SOCK_OPS, SK_LOOKUP = 3, 18, 13, 30  # enum bpf_prog_type
NO_EXPECTED_TYPE = -1


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program. `attach_type` is that of its link; a program without `expects` is loaded without one."""

    name: str
    type: int
    attach_type: int
    expects: bool = True
    at_root: bool = True  # else on the netns, or the link, of each pod: bpf.links


# In the order in which links are made and programs swapped: what captures comes last, when all it relies on is there.
PROGRAMS = (
    ProgramSpec("getpeername4", CGROUP_SOCK_ADDR, 29),
    ProgramSpec("getpeername6", CGROUP_SOCK_ADDR, 30),
    ProgramSpec("getsockname4", CGROUP_SOCK_ADDR, 31),
    ProgramSpec("getsockname6", CGROUP_SOCK_ADDR, 32),
    ProgramSpec("bind4", CGROUP_SOCK_ADDR, 8),
    ProgramSpec("bind6", CGROUP_SOCK_ADDR, 9),
    ProgramSpec("carry", SOCK_OPS, 3, expects=False),
    ProgramSpec("flow", SOCK_OPS, 3, expects=False),
    ProgramSpec("inbound", SK_LOOKUP, 36, at_root=False),
    ProgramSpec("guard", SCHED_CLS, 46, expects=False, at_root=False),
    ProgramSpec("connect4", CGROUP_SOCK_ADDR, 10),
    ProgramSpec("connect6", CGROUP_SOCK_ADDR, 11),
)

HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, SOCKHASH, SK_STORAGE = 1, 2, 5, 6, 18, 24  # enum bpf_map_type
NO_PREALLOC = 1


def _size(structure: type[ctypes.Structure]) -> int:
    return ctypes.sizeof(structure)


# As bpf/include/tables.h declares them; a test loads a set and holds the two equal.
MAPS: dict[str, MapShape] = {
    "notes": MapShape(SK_STORAGE, 4, _size(layout.CNote), 0, NO_PREALLOC),
    "flows": MapShape(SK_STORAGE, 4, _size(layout.CFlow), 0, NO_PREALLOC),
    "inflight": MapShape(HASH, _size(layout.CTuple), _size(layout.CNote), 65536, NO_PREALLOC),
    "unanswered": MapShape(HASH, 8, 4, 1024, NO_PREALLOC),
    "expected": MapShape(HASH, _size(layout.CExpectedKey), _size(layout.CExpected), 65536, NO_PREALLOC),
    "pods": MapShape(HASH, 8, _size(layout.CPod), 1024, NO_PREALLOC),
    "addresses": MapShape(HASH, 16, _size(layout.CAddress), 4096, NO_PREALLOC),
    "fallback": MapShape(HASH, 8, 4, 1024, NO_PREALLOC),
    "listeners": MapShape(SOCKHASH, _size(layout.CListenerKey), 8, 2048, 0),
    "node": MapShape(ARRAY, 4, _size(layout.CNode), 1, 0),
    "workloads": MapShape(HASH, 16, 4, 65536, NO_PREALLOC),
    "edges": MapShape(PERCPU_HASH, _size(layout.CEdge), _size(layout.CEdgeStats), 65536, NO_PREALLOC),
    "counters": MapShape(PERCPU_ARRAY, 4, 8, len(layout.Counter), 0),
}

# Figures: an upgrade that changes their shape may start them anew. Everything else decides about connections.
FIGURES = frozenset({"edges", "counters"})
