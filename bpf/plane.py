"""What a long-lived process does with a node's pinned set: typed access to the maps, and pods' inbound links.

Owns the descriptors of the maps that it opened. Loads and compiles nothing: that is `bpf.loader`. Who may write which
map stands in bpf/README.md; nothing here enforces it.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from bpf import kernel, links
from bpf.ends import Ends, ends_here
from bpf.layout import (
    CAddress,
    CEdge,
    CEdgeStats,
    CExpected,
    CExpectedKey,
    CFlow,
    CListenerKey,
    CNode,
    CNote,
    Counter,
    CPod,
    CTuple,
    Direction,
    Failure,
    FlowFlag,
    NoteKind,
    PodFlag,
    Port,
)
from bpf.manifest import Manifest, boot_id
from bpf.paths import BPFFS, RUNTIME, NodePaths
from bpf.records import Address, EdgeKey, EdgeStats, Flow, Note, Pod
from mesh.addresses import IPAddress, from_bytes16, to_bytes16

__all__ = [
    "Address",
    "Counter",
    "Direction",
    "EdgeKey",
    "EdgeStats",
    "Ends",
    "Failure",
    "Flow",
    "FlowFlag",
    "MapFull",
    "Note",
    "NoteKind",
    "Plane",
    "PlaneUnavailable",
    "Pod",
    "PodFlag",
    "Port",
]

MAPS = (
    "addresses",
    "counters",
    "edges",
    "expected",
    "fallback",
    "flows",
    "inflight",
    "listeners",
    "node",
    "notes",
    "pods",
    "unanswered",
    "workloads",
)


class PlaneUnavailable(Exception):
    """No usable set is pinned for the node; the message says why and what helps."""


class MapFull(Exception):
    """A map has no room for another entry."""


def possible_cpus() -> int:
    """How many values a per-CPU map holds per key."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1


class Plane:
    """One node's set. `open` it, use it from one thread at a time, close it."""

    def __init__(self, paths: NodePaths, fds: dict[str, int]) -> None:
        self.paths = paths
        self._fds = fds
        self._cpus = possible_cpus()

    @classmethod
    def open(cls, key: str, bpffs: Path = BPFFS, runtime: Path = RUNTIME) -> "Plane":
        """Open the pinned maps of a node; raises PlaneUnavailable."""
        paths = NodePaths(key, bpffs, runtime)
        manifest = Manifest.read(paths.manifest)
        if manifest is None or not paths.maps.is_dir():
            raise PlaneUnavailable(f"no programs are loaded for node {key} ({paths.set} or its manifest is missing)")
        if manifest.boot != boot_id():
            raise PlaneUnavailable(f"the set of node {key} is from before the last boot: load it again")
        fds: dict[str, int] = {}
        try:
            for name in MAPS:
                fds[name] = kernel.open_pin(paths.maps / name)
        except OSError as error:
            for fd in fds.values():
                os.close(fd)
            raise PlaneUnavailable(f"the set of node {key} is incomplete: {error}") from error
        return cls(paths, fds)

    def close(self) -> None:
        """Close the maps. What is pinned stays as it is."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def __enter__(self) -> "Plane":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map_fd(self, name: str) -> int:
        """The descriptor of a map, for the engine. It stays the plane's."""
        return self._fds[name]

    # -- pods: written by the agent

    def enrol(self, netns: int, ip4: IPAddress | None, ip6: IPAddress | None, flags: PodFlag) -> None:
        """Put a pod, or change its flags."""
        self._put("pods", struct.pack("=Q", netns), Pod(netns, ip4, ip6, flags).pack())

    def set_flags(self, netns: int, flags: PodFlag) -> None:
        """Change what is done to an enrolled pod's connections; raises KeyError when it is not enrolled.

        Capture ends before, and begins after, the change of what arrives.
        """
        pod = self.pod(netns)
        if pod is None:
            raise KeyError(netns)
        if PodFlag.CAPTURE not in flags:
            self.enrol(netns, pod.ip4, pod.ip6, flags)
        for address, entry in self.addresses().items():
            if entry.netns == netns:
                self.put_address(address, netns, flags)
        self.enrol(netns, pod.ip4, pod.ip6, flags)

    def pod(self, netns: int) -> Pod | None:
        """One enrolled pod."""
        raw = kernel.map_lookup(self._fds["pods"], struct.pack("=Q", netns), ctypes.sizeof(CPod))
        return None if raw is None else Pod.unpack(netns, raw)

    def pods(self) -> dict[int, Pod]:
        """Every enrolled pod by netns cookie."""
        entries = kernel.map_batch(self._fds["pods"], 8, ctypes.sizeof(CPod))
        cookies = ((struct.unpack("=Q", key)[0], raw) for key, raw in entries)
        return {netns: Pod.unpack(netns, raw) for netns, raw in cookies}

    def unenrol(self, netns: int) -> None:
        """Forget a pod: capture first, then its links, addresses, fallback, listeners and expected tuples.

        The guard goes before: without the capture it would cut the pod off.
        """
        self.detach_guard(netns)
        kernel.map_delete(self._fds["pods"], struct.pack("=Q", netns))
        self.detach_inbound(netns)
        for address, entry in self.addresses().items():
            if entry.netns == netns:
                self.remove_address(address)
        self.set_fallback(netns, False)
        for port in self.listeners(netns):
            self.remove_listener(netns, port)
        self._forget_expected(netns)
        kernel.map_delete(self._fds["unanswered"], struct.pack("=Q", netns))

    def _forget_expected(self, netns: int) -> None:
        fd = self._fds["expected"]
        for key, raw in kernel.map_batch(fd, ctypes.sizeof(CExpectedKey), ctypes.sizeof(CExpected)):
            if CExpected.from_buffer_copy(raw).netns == netns:
                kernel.map_delete(fd, key)

    # -- addresses: written by the agent; fallback: by ztunnel, cleared by the agent when that is away

    def put_address(self, address: IPAddress, netns: int, flags: PodFlag) -> None:
        """Say that an address is a local pod's."""
        self._put("addresses", to_bytes16(address), bytes(CAddress(netns=netns, flags=flags)))

    def remove_address(self, address: IPAddress) -> bool:
        """Forget an address; False when it was unknown."""
        return kernel.map_delete(self._fds["addresses"], to_bytes16(address))

    def addresses(self) -> dict[IPAddress, Address]:
        """Every address of a local pod."""
        found = {}
        for key, raw in kernel.map_batch(self._fds["addresses"], 16, ctypes.sizeof(CAddress)):
            value = CAddress.from_buffer_copy(raw)
            found[from_bytes16(key)] = Address(value.netns, PodFlag(value.flags))
        return found

    def set_fallback(self, netns: int, is_open: bool) -> None:
        """May strangers connect to the pod's applications while ztunnel is away?"""
        key = struct.pack("=Q", netns)
        if is_open:
            self._put("fallback", key, struct.pack("=I", 1))
        else:
            kernel.map_delete(self._fds["fallback"], key)

    def fallback(self, netns: int) -> bool:
        """Whether the pod passes while ztunnel is away."""
        raw = kernel.map_lookup(self._fds["fallback"], struct.pack("=Q", netns), 4)
        return raw is not None and raw != bytes(4)

    def fallbacks(self) -> list[int]:
        """The netns cookies of all pods that pass while ztunnel is away."""
        return [struct.unpack("=Q", key)[0] for key, _ in kernel.map_batch(self._fds["fallback"], 8, 4)]

    # -- node: written by the agent

    def set_node(self, netns: int) -> None:
        """The netns whose own sockets are the node's probes; 0: none."""
        self._put("node", struct.pack("=I", 0), bytes(CNode(netns=netns)))

    def node(self) -> int:
        """The node's own netns cookie; 0: none."""
        raw = kernel.map_lookup(self._fds["node"], struct.pack("=I", 0), ctypes.sizeof(CNode))
        netns: int = 0 if raw is None else CNode.from_buffer_copy(raw).netns
        return netns

    # -- workloads: written by ztunnel

    def put_workload(self, address: IPAddress, number: int) -> None:
        """Give an address its workload's number."""
        self._put("workloads", to_bytes16(address), struct.pack("=I", number))

    def remove_workload(self, address: IPAddress) -> bool:
        """Forget an address' number; False when it had none."""
        return kernel.map_delete(self._fds["workloads"], to_bytes16(address))

    def workloads(self) -> dict[IPAddress, int]:
        """Every known number by address."""
        entries = kernel.map_batch(self._fds["workloads"], 16, 4)
        return {from_bytes16(key): struct.unpack("=I", raw)[0] for key, raw in entries}

    # -- listeners: written by ztunnel

    def put_listener(self, netns: int, port: int, listener: socket.socket | int) -> None:
        """Take over a pod's port with a listening socket of that pod; replaces the former one in one step."""
        fd = listener if isinstance(listener, int) else listener.fileno()
        self._put("listeners", bytes(CListenerKey(netns=netns, port=port)), struct.pack("=Q", fd))

    def remove_listener(self, netns: int, port: int) -> bool:
        """Empty a slot; False when it was. A closed listener leaves by itself."""
        try:
            return kernel.map_delete(self._fds["listeners"], bytes(CListenerKey(netns=netns, port=port)))
        except OSError as error:
            if error.errno == errno.EINVAL:  # what sockhash answers for a key that went meanwhile
                return False
            raise

    def listeners(self, netns: int | None = None) -> dict[int, int]:
        """Socket cookies by port, of one pod. Without a pod: how many slots are taken, by port."""
        found: dict[int, int] = {}
        for raw in kernel.map_keys(self._fds["listeners"], ctypes.sizeof(CListenerKey)):
            key = CListenerKey.from_buffer_copy(raw)
            value = kernel.map_lookup(self._fds["listeners"], raw, 8)
            if value is None:
                continue
            if netns is None:
                found[key.port] = found.get(key.port, 0) + 1
            elif key.netns == netns:
                found[key.port] = struct.unpack("=Q", value)[0]
        return found

    # -- notes and flows: by descriptor of a socket

    def put_note(self, sock: socket.socket | int, note: Note) -> None:
        """Write a socket's note. What `flows` counted of it stays."""
        fd = sock if isinstance(sock, int) else sock.fileno()
        self._put("notes", struct.pack("=i", fd), note.pack())

    def note(self, sock: socket.socket | int) -> Note | None:
        """A socket's note."""
        fd = sock if isinstance(sock, int) else sock.fileno()
        raw = kernel.map_lookup(self._fds["notes"], struct.pack("=i", fd), ctypes.sizeof(CNote))
        return None if raw is None else Note.unpack(raw)

    def flow(self, sock: socket.socket | int) -> Flow | None:
        """What was counted of a socket so far."""
        fd = sock if isinstance(sock, int) else sock.fileno()
        raw = kernel.map_lookup(self._fds["flows"], struct.pack("=i", fd), ctypes.sizeof(CFlow))
        return None if raw is None else Flow.unpack(raw)

    # -- figures: written by the kernel

    def edges(self) -> dict[EdgeKey, EdgeStats]:
        """Every edge that was ever seen, the unknown one (0 to 0) included."""
        size = ctypes.sizeof(CEdgeStats)
        words = size // 8
        unpack = struct.Struct(f"={words * self._cpus}Q").unpack
        found = {}
        for key, raw in kernel.map_batch(self._fds["edges"], ctypes.sizeof(CEdge), size * self._cpus):
            figures = unpack(raw)
            sums = [sum(figures[word::words]) for word in range(words)]
            found[EdgeKey.unpack(key)] = EdgeStats.of_words(sums)
        return found

    def remove_edges(self, keys: Iterable[EdgeKey]) -> None:
        """Forget edges, so that numbers may be used again for other workloads."""
        for key in keys:
            kernel.map_delete(self._fds["edges"], key.pack())

    def counters(self) -> dict[Counter, int]:
        """How often each exit of a program was taken."""
        found = {}
        for counter in Counter:
            raw = kernel.map_lookup(self._fds["counters"], struct.pack("=I", counter), 8 * self._cpus)
            found[counter] = sum(struct.unpack(f"={self._cpus}Q", raw)) if raw is not None else 0
        return found

    def in_flight(self) -> int:
        """How many notes wait between connect and accept."""
        return len(kernel.map_batch(self._fds["inflight"], ctypes.sizeof(CTuple), ctypes.sizeof(CNote)))

    def expected(self) -> int:
        """How many probe connections are open."""
        entries = kernel.map_batch(self._fds["expected"], ctypes.sizeof(CExpectedKey), ctypes.sizeof(CExpected))
        return len(entries)

    def is_expected(self, local: IPAddress, local_port: int, remote: IPAddress, remote_port: int) -> bool:
        """Whether a connection, as the pod sees it, is one of the node's probes."""
        key = CExpectedKey(local_port=socket.htons(local_port), remote_port=socket.htons(remote_port))
        key.local[:] = to_bytes16(local)
        key.remote[:] = to_bytes16(remote)
        return kernel.map_lookup(self._fds["expected"], bytes(key), ctypes.sizeof(CExpected)) is not None

    # -- links of pods: made by the agent

    def attach_inbound(self, netns: int, netns_fd: int) -> None:
        """Steer what arrives in a pod's netns. A link that is there and alive stays; a dead one is replaced."""
        links.attach(self.paths, netns, netns_fd)

    def detach_inbound(self, netns: int) -> bool:
        """Remove a pod's link; False when it had none."""
        return links.detach(self.paths, netns)

    def attach_guard(self, netns: int, netns_fd: int) -> Ends:
        """Let nobody but ztunnel open TCP connections out of a pod; returns where the guard stands and where not.

        Call in the node's own netns, where the other ends of the pod's links are. Raises OSError.
        """
        return links.attach_guard(self.paths, netns, netns_fd)

    def detach_guard(self, netns: int) -> bool:
        """Remove a pod's guard; False when it had none."""
        return links.detach_guard(self.paths, netns)

    def is_guarded(self, netns: int) -> bool:
        """Whether the pod has a guard, and every link that it was put on still exists."""
        return links.is_guarded(self.paths, netns)

    def guarded(self, netns_fds: Mapping[int, int]) -> set[int]:
        """Of pods by cookie and descriptor: those whose guard stands on every link that leads to them now.

        Call in the node's own netns. Raises OSError.
        """
        found = ends_here(netns_fds)
        return {netns for netns, indexes in found.items() if links.is_guarded(self.paths, netns, indexes)}

    def inbound_links(self) -> dict[int, bool]:
        """Pods with a pinned link by netns cookie, and whether its netns still lives."""
        return links.alive(self.paths)

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        try:
            kernel.map_update(self._fds[name], key, value)
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.ENOMEM):
                raise MapFull(f"map {name} of node {self.paths.key} is full") from error
            raise
