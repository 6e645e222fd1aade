"""Programs of others at the same hooks: what they ask the kernel for is not taken from them.

`bpf_sock_ops_cb_flags_set` replaces what every program before it has asked for. A foreign program that runs before ours
asks for timeouts; one that runs after ours reads what is asked for in the end.
"""

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from bpf import cgroup, kernel
from bpf.paths import NodePaths
from bpf.plane import Plane
from tests.bpf.conftest import enrol, loader
from tests.bpf.dialling import PORT
from tests.bpf.topology import Place, Topology

SOCK_OPS, ATTACH_SOCK_OPS = 13, 3
CONNECT_CB = 3  # BPF_SOCK_OPS_TCP_CONNECT_CB
RTO, STATE = 1, 4  # BPF_SOCK_OPS_*_CB_FLAG
CB_FLAGS_AT = 84  # offset of bpf_sock_ops_cb_flags
SET_FLAGS, UPDATE = 59, 2  # helpers
MAP_CREATE, ARRAY = 0, 2


def op(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, of << 4 | to, offset, value)


def on_connect(body: bytes) -> bytes:
    """A program that does something before a SYN leaves and nothing otherwise; r6 is the context."""
    start = op(0xBF, 6, 1) + op(0x61, 0, 1) + op(0x55, 0, offset=len(body) // 8, value=CONNECT_CB)
    return start + body + op(0xB7, 0, value=1) + op(0x95)


ASKS_FOR_TIMEOUTS = on_connect(op(0xBF, 1, 6) + op(0xB7, 2, value=RTO) + op(0x85, value=SET_FLAGS))


def writes_down(array: int) -> bytes:
    """Puts the flags into the first slot of an array."""
    flags = op(0x61, 7, 6, CB_FLAGS_AT) + op(0x63, 10, 7, -4) + op(0x62, 10, offset=-8)
    arguments = op(0x18, 1, 1, value=array) + op(0) + op(0xBF, 2, 10) + op(0x07, 2, value=-8)
    arguments += op(0xBF, 3, 10) + op(0x07, 3, value=-4) + op(0xB7, 4)
    return on_connect(flags + arguments + op(0x85, value=UPDATE))


@contextmanager
def attached(instructions: bytes) -> Iterator[None]:
    root = cgroup.open_root()
    with ExitStack() as stack:
        stack.callback(os.close, root)
        program, _ = kernel.load_program(SOCK_OPS, 0, instructions)
        stack.callback(os.close, program)
        stack.callback(os.close, kernel.link_create(program, root, ATTACH_SOCK_OPS))
        yield


class Reader:
    """What the last connect had asked for in the end."""

    def __init__(self, array: int) -> None:
        self._array = array

    def flags_of(self, place: Place) -> int:
        kernel.map_update(self._array, bytes(4), struct.pack("=I", 0xFFFF))
        with place.socket() as sock:
            sock.settimeout(0.2)
            with suppress(OSError):
                sock.connect(("10.77.9.1", PORT))
        raw = kernel.map_lookup(self._array, bytes(4), 4)
        assert raw is not None
        found: int = struct.unpack("=I", raw)[0]
        assert found != 0xFFFF, "the foreign program saw no connect"
        return found


@pytest.fixture
def surrounded(net: Topology, key: str) -> Iterator[Reader]:
    """A set of its own between the two foreign programs, and pod a in it."""
    own = f"{key}-between"
    array = kernel.call(MAP_CREATE, struct.pack("=IIIII", ARRAY, 4, 4, 1, 0), "make an array")
    with ExitStack() as stack:
        stack.callback(os.close, array)
        stack.enter_context(attached(ASKS_FOR_TIMEOUTS))
        stack.callback(shutil.rmtree, NodePaths(own).state.parent, ignore_errors=True)
        stack.callback(loader, "unload", "--node", own)
        loader("load", "--node", own)
        plane = stack.enter_context(Plane.open(own))
        enrol(plane, net.a)
        stack.enter_context(attached(writes_down(array)))
        yield Reader(array)


def test_what_others_asked_for_stays_beside_what_we_ask_for(net: Topology, surrounded: Reader) -> None:
    assert surrounded.flags_of(net.a) & (RTO | STATE) == RTO | STATE


def test_sockets_of_namespaces_that_are_not_enrolled_are_not_touched(net: Topology, surrounded: Reader) -> None:
    assert surrounded.flags_of(net.out) == RTO
    assert surrounded.flags_of(net.b) == RTO
