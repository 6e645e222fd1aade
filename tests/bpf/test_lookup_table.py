"""The sk_lookup program as a table: BPF_PROG_TEST_RUN, no packets."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bpf import kernel
from bpf.layout import CExpected, CExpectedKey
from bpf.plane import Counter, Plane, PodFlag
from mesh.addresses import to_bytes16
from tests.bpf.conftest import BOTH
from tests.bpf.topology import Topology

DROP, PASS = 0, 1
TCP, UDP = 6, 17
NETNS = 1 << 41  # of no namespace: the slots stay empty


def context(
    local: str,
    port: int,
    remote: str = "10.77.9.1",
    protocol: int = TCP,
    remote_port: int = 50000,
) -> bytes:
    """struct bpf_sk_lookup. The kernel takes no interface here: it is 0, which is not loopback."""
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    if family == socket.AF_INET:
        addresses = [socket.inet_aton(remote), bytes(16), socket.inet_aton(local), bytes(16)]
    else:
        addresses = [bytes(4), socket.inet_pton(family, remote), bytes(4), socket.inet_pton(family, local)]
    return struct.pack(
        "=QII4s16sHH4s16sII",
        0,
        family,
        protocol,
        addresses[0],
        addresses[1],
        socket.htons(remote_port),
        0,
        addresses[2],
        addresses[3],
        port,
        0,
    )


@pytest.fixture
def program(plane: Plane) -> Iterator[int]:
    fd = kernel.open_pin(plane.paths.programs / "inbound")
    yield fd
    os.close(fd)


@pytest.fixture
def announced(plane: Plane, net: Topology) -> None:
    for address in (net.a.address4, net.a.address6):
        plane.put_address(address, NETNS, BOTH)


V4, V6 = "10.77.1.1", "fd77:1::1"
OUT4, OUT6 = "10.77.9.1", "fd77:9::1"

ROWS = [
    pytest.param(context(V4, 7000, protocol=UDP), PASS, None, id="udp"),
    pytest.param(context(V4, 15008, protocol=UDP), PASS, None, id="udp to a mesh port"),
    pytest.param(context(V6, 7000, OUT6, protocol=UDP), PASS, None, id="udp over IPv6"),
    pytest.param(context(V4, 7000, V4), PASS, Counter.INBOUND_LOOPBACK, id="own address"),
    pytest.param(context(V6, 7000, V6), PASS, Counter.INBOUND_LOOPBACK, id="own IPv6 address"),
    pytest.param(context("10.9.9.9", 7000, "10.9.9.9"), PASS, Counter.INBOUND_LOOPBACK, id="own unannounced address"),
    pytest.param(context("10.9.9.9", 7000), DROP, Counter.INBOUND_UNKNOWN_ADDRESS, id="unannounced address"),
    pytest.param(context("fd77:5::1", 7000, OUT6), DROP, Counter.INBOUND_UNKNOWN_ADDRESS, id="unannounced IPv6"),
    pytest.param(context("10.9.9.9", 15008), DROP, Counter.INBOUND_UNKNOWN_ADDRESS, id="15008, unannounced"),
    pytest.param(context(V4, 7000), DROP, Counter.INBOUND_REFUSED, id="no ztunnel"),
    pytest.param(context(V6, 7000, OUT6), DROP, Counter.INBOUND_REFUSED, id="no ztunnel, IPv6"),
    pytest.param(context(V4, 15008), DROP, Counter.INBOUND_REFUSED, id="no ztunnel, 15008"),
    pytest.param(context(V4, 15001), DROP, Counter.INBOUND_REFUSED, id="15001 from outside"),
]


@pytest.mark.parametrize(("lookup", "verdict", "counter"), ROWS)
def test_verdict_and_its_counter(
    plane: Plane, announced: None, program: int, lookup: bytes, verdict: int, counter: Counter | None
) -> None:
    before = plane.counters()
    assert kernel.test_run(program, lookup) == verdict
    moved = {name for name, value in plane.counters().items() if value != before[name]}
    assert moved == ({counter} if counter is not None else set())


@pytest.mark.parametrize(
    ("port", "verdict", "counter"),
    [
        (7000, PASS, Counter.INBOUND_FALLBACK),
        (15006, PASS, Counter.INBOUND_FALLBACK),
        (15008, DROP, Counter.INBOUND_REFUSED),
    ],
)
def test_fallback(plane: Plane, announced: None, program: int, port: int, verdict: int, counter: Counter) -> None:
    plane.set_fallback(NETNS, True)
    try:
        before = plane.counters()[counter]
        assert kernel.test_run(program, context(V4, port)) == verdict
        assert plane.counters()[counter] == before + 1
    finally:
        plane.set_fallback(NETNS, False)


def test_fallback_is_what_the_entry_says_not_that_there_is_one(plane: Plane, announced: None, program: int) -> None:
    fd, key = plane.map_fd("fallback"), struct.pack("=Q", NETNS)
    kernel.map_update(fd, key, struct.pack("=I", 0))
    try:
        assert kernel.test_run(program, context(V4, 7000)) == DROP
    finally:
        kernel.map_delete(fd, key)


@pytest.mark.parametrize(
    ("port", "verdict", "counter"),
    [(7000, PASS, Counter.INBOUND_DRAINING), (15008, DROP, Counter.INBOUND_REFUSED)],
)
def test_draining(
    plane: Plane, announced: None, net: Topology, program: int, port: int, verdict: int, counter: Counter
) -> None:
    plane.put_address(net.a.address4, NETNS, PodFlag(0))
    before = plane.counters()[counter]
    assert kernel.test_run(program, context(V4, port)) == verdict
    assert plane.counters()[counter] == before + 1


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        pytest.param({}, PASS, id="the tuple itself"),
        pytest.param({"remote_port": 50001}, DROP, id="another source port"),
        pytest.param({"remote": "10.77.9.2"}, DROP, id="another source"),
        pytest.param({"port": 7001}, DROP, id="another port"),
    ],
)
def test_expected_tuple_passes_alone(
    plane: Plane, announced: None, program: int, change: dict[str, object], verdict: int
) -> None:
    key = CExpectedKey(local_port=socket.htons(7000), remote_port=socket.htons(50000))
    key.local[:] = to_bytes16(V4)
    key.remote[:] = to_bytes16(OUT4)
    fd = plane.map_fd("expected")
    with ExitStack() as stack:
        kernel.map_update(fd, bytes(key), bytes(CExpected(cookie=1, netns=NETNS)))
        stack.callback(kernel.map_delete, fd, bytes(key))
        wanted: dict[str, object] = {"local": V4, "port": 7000, "remote": OUT4, **change}
        assert kernel.test_run(program, context(**wanted)) == verdict  # type: ignore[arg-type]


def test_tuple_of_another_pod_does_not_pass(plane: Plane, announced: None, program: int) -> None:
    key = CExpectedKey(local_port=socket.htons(7000), remote_port=socket.htons(50000))
    key.local[:] = to_bytes16(V4)
    key.remote[:] = to_bytes16(OUT4)
    fd = plane.map_fd("expected")
    kernel.map_update(fd, bytes(key), bytes(CExpected(cookie=1, netns=NETNS + 1)))
    try:
        assert kernel.test_run(program, context(V4, 7000)) == DROP
    finally:
        kernel.map_delete(fd, bytes(key))


@pytest.mark.parametrize("name", ["connect4", "getpeername4", "carry", "flow"])
def test_other_hooks_cannot_be_test_run(plane: Plane, name: str) -> None:
    """Why they are tested with sockets. When this changes, tables like the ones above become possible for them."""
    fd = kernel.open_pin(plane.paths.programs / name)
    try:
        with pytest.raises(OSError, match="test run") as failure:
            kernel.test_run(fd, bytes(8))
        assert failure.value.errno == 524  # ENOTSUPP
    finally:
        os.close(fd)
