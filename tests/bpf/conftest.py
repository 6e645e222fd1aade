"""One program set and one topology for all tests here; each test enrols the pods it needs."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bpf.ends import Ends
from bpf.loader import install
from bpf.paths import NodePaths
from bpf.plane import Direction, EdgeKey, Note, NoteKind, Plane, PodFlag
from tests.bpf.topology import Place, Topology, prefix
from tests.support.machine import ready_for_programs

BOTH = PodFlag.CAPTURE | PodFlag.INBOUND


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(300))  # the lock below may be another run's for a while


def loader(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """The loader as its users run it: a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bpf.loader", *words], capture_output=True, text=True, timeout=60, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(f"loader {words}: {done.stderr}")
    return done


@pytest.fixture(scope="session")
def machine() -> Iterator[None]:
    """Root, the features, and the machine's cgroup root to ourselves."""
    with ready_for_programs():
        yield


@pytest.fixture(scope="session")
def net(machine: None) -> Iterator[Topology]:
    topology = Topology(prefix())
    try:
        topology.build()
        yield topology
    finally:
        topology.remove()


@pytest.fixture(scope="session")
def key(machine: None) -> str:
    return prefix()


@pytest.fixture(scope="session")
def loaded(key: str) -> Iterator[str]:
    try:
        loader("load", "--node", key)
        yield key
    finally:
        loader("unload", "--node", key)
        shutil.rmtree(NodePaths(key).state.parent)


@pytest.fixture(scope="session")
def session_plane(loaded: str) -> Iterator[Plane]:
    with Plane.open(loaded) as plane:
        yield plane


class Ztunnel:
    """What of ztunnel the programs need: listeners in a pod, and notes on its sockets."""

    def __init__(self, plane: Plane, place: Place) -> None:
        self._stack = ExitStack()
        self.plane = plane
        self.place = place
        self.outbound4 = self._listener("0.0.0.0", 15001, loopback_only=True)
        self.outbound6 = self._listener("::1", 15001)
        self.inbound = self._listener("::", 15006)
        self.hbone = self._listener("::", 15008)
        plane.put_listener(place.cookie, 15006, self.inbound)
        plane.put_listener(place.cookie, 15008, self.hbone)

    def _listener(self, address: str, port: int, loopback_only: bool = False) -> socket.socket:
        sock = self.own(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if loopback_only:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        if address == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address, port))
        sock.listen(4096)
        return sock

    def own(self, family: int = socket.AF_INET) -> socket.socket:
        sock = self._stack.enter_context(self.place.socket(family))
        # What it accepts holds the application's port: without this the application could not bind it meanwhile.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.plane.put_note(sock, Note(NoteKind.OWN))
        return sock

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def plane(session_plane: Plane, net: Topology) -> Iterator[Plane]:
    """The plane, with nothing enrolled before and after."""
    yield session_plane
    for netns in (*session_plane.pods(), *session_plane.inbound_links()):
        session_plane.unenrol(netns)
    for address in session_plane.addresses():
        session_plane.remove_address(address)
    for address in session_plane.workloads():
        session_plane.remove_workload(address)
    session_plane.set_node(0)


def enrol(plane: Plane, place: Place, flags: PodFlag = BOTH) -> None:
    """What the agent does, in its order."""
    cookie = place.cookie
    for address in (place.address4, place.address6):
        plane.put_address(address, cookie, flags)
    with place.path.open() as handle:
        plane.attach_inbound(cookie, handle.fileno())
    plane.enrol(cookie, place.address4, place.address6, flags)


@pytest.fixture
def pod(plane: Plane, net: Topology) -> Place:
    """Pod a, enrolled, without a ztunnel."""
    enrol(plane, net.a)
    return net.a


@pytest.fixture
def ztunnel(plane: Plane, pod: Place) -> Iterator[Ztunnel]:
    """ztunnel's part in pod a."""
    with ExitStack() as stack:
        ztunnel = Ztunnel(plane, pod)
        stack.callback(ztunnel.close)
        yield ztunnel


@pytest.fixture
def spare(machine: None, key: str) -> Iterator[NodePaths]:
    """A second node's place on this machine, empty before and after."""
    paths = NodePaths(f"{key}.spare_1")
    yield paths
    install.unload(paths)
    with suppress(FileNotFoundError):
        paths.lock.unlink()
        paths.state.rmdir()
        paths.state.parent.rmdir()


@pytest.fixture
def edge(plane: Plane) -> Callable[[Direction], EdgeKey]:
    """A fresh edge from workload 11 to 22, empty in every direction."""
    plane.remove_edges(EdgeKey(11, 22, direction) for direction in Direction)
    return lambda direction: EdgeKey(11, 22, direction)


def guard(plane: Plane, net: Topology, place: Place) -> Ends:
    """What the agent does, from the node's netns."""
    with place.path.open() as handle:
        return net.node.run(lambda: plane.attach_guard(place.cookie, handle.fileno()))


@pytest.fixture
def guarded(plane: Plane, net: Topology, ztunnel: Ztunnel) -> Place:
    """Pod a: enrolled, with a ztunnel, guarded."""
    guard(plane, net, net.a)
    return net.a
