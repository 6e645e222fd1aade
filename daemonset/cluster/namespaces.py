"""The network namespaces of the node's pods: told by the CNI plugin, or found through a process of the pod.

Owns a descriptor for each pod's namespace and gives it a path of its own, `netns:<serial>`, which never means another
one: descriptors and inodes are used again, and a pod must not be enrolled under the name of its predecessor. As
`Namespaces` of the agent it opens those paths.

A pod that runs already has processes, and its cgroup's name has the pod's uid, whoever made it (cgroupfs or systemd,
cgroup v1 or v2). The oldest of them belongs to the sandbox. One whose namespace is the node's own, or does not have the
pod's address, is not looked at: a container may enter other namespaces. As long as that process lives nothing is looked
for again; when it has ended, the runtime may have made the pod a new sandbox.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemonset.agent import KernelNamespaces, OpenNetns
from mesh import netns
from mesh.addresses import IPAddress

PROC = Path("/proc")
PREFIX = "netns:"

# `…/pod<uid>/…` of cgroupfs, `…-pod<uid with underscores>.slice/…` of systemd; static pods have 32 digits.
_POD_OF_CGROUP = re.compile(
    rb"[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?:/|$)", re.M
)


@dataclass(slots=True)
class Witness:
    """A process in a namespace; its start tells it from another one that got its pid."""

    pid: int
    start: int


@dataclass(slots=True)
class Sandbox:
    """One pod's namespace; `container` is empty when nobody told us."""

    path: str
    fd: int
    key: tuple[int, int]  # device and inode of the namespace
    container: str
    addresses: tuple[IPAddress, ...]
    witness: Witness | None = None


@dataclass(frozen=True, slots=True)
class Sought:
    """A pod whose namespace is wanted."""

    uid: str
    runtime_uid: str
    addresses: tuple[IPAddress, ...]


class Sandboxes:
    """By pod uid. Changed from the loop only."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._by_uid: dict[str, Sandbox] = {}
        self._serials = itertools.count(1)
        self._own = _key((proc / "self/ns/net").stat())
        self._kernel = KernelNamespaces()

    def __contains__(self, uid: str) -> bool:
        return uid in self._by_uid

    def get(self, uid: str) -> Sandbox | None:
        """What is known of a pod."""
        return self._by_uid.get(uid)

    def give(self, uid: str, container: str, fd: int, addresses: tuple[IPAddress, ...]) -> Sandbox:
        """The CNI plugin has told; the descriptor stays the caller's. Raises OSError."""
        if not netns.is_network_namespace(fd):
            raise OSError("the descriptor is not a network namespace")
        return self._put(uid, os.dup(fd), container, addresses)

    def remove(self, uid: str, container: str) -> None:
        """A sandbox is torn down; an older one than ours does not matter. A static pod is known by its other uid."""
        for known, sandbox in list(self._by_uid.items()):
            if sandbox.container == container and container and (known == uid or not uid or uid not in self._by_uid):
                self._drop(known)

    def keep_only(self, uids: Collection[str]) -> None:
        """All other pods are gone."""
        for uid in [uid for uid in self._by_uid if uid not in uids]:
            self._drop(uid)

    def close(self) -> None:
        """Let go of everything."""
        self.keep_only(())

    def search(self, pods: Sequence[Sought]) -> None:
        """Find those that are not known and those whose witness has ended; looks at every process if there are any."""
        wanted = {pod.runtime_uid: pod for pod in pods if not self._is_witnessed(pod.uid)}
        if not wanted:
            return
        for runtime_uid, pids in _processes_of(self._proc, wanted).items():
            self._find(wanted[runtime_uid], pids)

    # --- as the agent's Namespaces

    def open(self, path: str) -> OpenNetns:
        """A descriptor of one's own; raises OSError when that sandbox is gone."""
        sandbox = self._at(path)
        return self._kernel.open(f"/proc/self/fd/{sandbox.fd}")

    def is_same(self, fd: int, path: str) -> bool:
        """Whether the path is of that namespace; raises OSError when that sandbox is gone."""
        return _key(os.fstat(fd)) == self._at(path).key

    def _at(self, path: str) -> Sandbox:
        for sandbox in self._by_uid.values():
            if sandbox.path == path:
                return sandbox
        raise OSError(f"{path}: the sandbox is gone")

    # --- keeping

    def _put(self, uid: str, fd: int, container: str, addresses: tuple[IPAddress, ...]) -> Sandbox:
        """Take a descriptor; the same namespace as before keeps its path."""
        key = _key(os.fstat(fd))
        known = self._by_uid.get(uid)
        if known is not None and known.key == key:
            os.close(fd)
            known.container, known.addresses = container or known.container, addresses or known.addresses
            return known
        self._drop(uid)
        sandbox = Sandbox(f"{PREFIX}{next(self._serials)}", fd, key, container, addresses)
        self._by_uid[uid] = sandbox
        return sandbox

    def _drop(self, uid: str) -> None:
        if (sandbox := self._by_uid.pop(uid, None)) is not None:
            os.close(sandbox.fd)

    # --- finding

    def _is_witnessed(self, uid: str) -> bool:
        sandbox = self._by_uid.get(uid)
        witness = sandbox.witness if sandbox is not None else None
        return witness is not None and _start_of(self._proc, witness.pid) == witness.start

    def _find(self, pod: Sought, pids: Iterable[int]) -> None:
        known = self._by_uid.get(pod.uid)
        started = [(start, pid) for pid in pids if (start := _start_of(self._proc, pid))]
        for start, pid in sorted(started):
            with contextlib.suppress(OSError):
                fd = os.open(self._proc / str(pid) / "ns/net", os.O_RDONLY | os.O_CLOEXEC)
                if not self._fits(fd, pod.addresses or (known.addresses if known else ())):
                    os.close(fd)
                    continue
                self._put(pod.uid, fd, "", ()).witness = Witness(pid, start)
                return

    def _fits(self, fd: int, addresses: Sequence[IPAddress]) -> bool:
        return _key(os.fstat(fd)) != self._own and (not addresses or _has_address(fd, addresses[0]))


def _has_address(fd: int, address: IPAddress) -> bool:
    """Whether a namespace has this address on one of its links."""

    def look() -> bool:
        if address.version == 6:
            listed = Path("/proc/thread-self/net/if_inet6").read_text().split("\n")
            return any(line.startswith(address.packed.hex()) for line in listed)
        routes = Path("/proc/thread-self/net/fib_trie").read_text()
        return re.search(rf"\|-- {re.escape(str(address))}\n\s+/32 host LOCAL", routes) is not None

    return netns.inside(fd, look)


def _processes_of(proc: Path, wanted: Mapping[str, Sought]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for pid in _pids(proc):
        try:
            text = (proc / str(pid) / "cgroup").read_bytes()
        except OSError:
            continue  # ended meanwhile
        for uid in set(_POD_OF_CGROUP.findall(text)):
            name = uid.decode().replace("_", "-")
            if name in wanted:
                found.setdefault(name, []).append(pid)
    return found


def _pids(proc: Path) -> Iterator[int]:
    with os.scandir(proc) as entries:
        for entry in entries:
            if entry.name.isdecimal():
                yield int(entry.name)


def _start_of(proc: Path, pid: int) -> int:
    """When a process was started, in ticks since boot; 0: it has ended."""
    try:
        text = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return 0
    fields = text[text.rfind(b")") + 2 :].split()  # the name before may have anything in it
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _key(status: os.stat_result) -> tuple[int, int]:
    return (status.st_dev, status.st_ino)
