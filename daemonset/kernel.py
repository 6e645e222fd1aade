"""The node's maps and links in the agent's words: capture a pod, guard it, let it go, say what is held.

Owns the open plane. The order of writes inside `capture` matters and is argued there; each call may be repeated. What
is pinned outlives this process on purpose.
"""

import errno
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bpf import kernel as bpf
from bpf.layout import PodFlag
from bpf.manifest import BadManifest
from bpf.paths import BPFFS, RUNTIME, escape
from bpf.plane import MapFull, Plane, PlaneUnavailable
from daemonset.enrolment import CaptureRefused, KernelFault
from daemonset.pods import Refusal, RefusalKind
from mesh.addresses import IPAddress

log = logging.getLogger(__name__)

# Maps that this process uses: when another one is pinned in their place, ours are nobody's.
_OWN_MAPS = ("pods", "addresses", "node", "fallback", "counters")


class NodeKernel:
    """One node's plane; a context manager."""

    def __init__(self, plane: Plane, no_guard: str = "") -> None:
        self._plane = plane
        self.no_guard = no_guard  # why no pod is guarded; empty: they are

    @classmethod
    def open(cls, key: str, bpffs: Path = BPFFS, runtime: Path = RUNTIME, no_guard: str = "") -> "NodeKernel":
        """Open what is pinned for a node; raises KernelFault."""
        try:
            return cls(Plane.open(key, bpffs, runtime), no_guard)
        except (PlaneUnavailable, BadManifest, OSError) as error:
            raise KernelFault(str(error)) from error

    def __enter__(self) -> "NodeKernel":
        return self

    def __exit__(self, *_: object) -> None:
        self._plane.close()

    def set_node(self, cookie: int) -> None:
        """The namespace whose own sockets may probe pods; raises KernelFault."""
        with _named("node map"):
            self._plane.set_node(cookie)

    def admit(self, cookie: int) -> None:
        """Make sure that no other node's set acts on the namespace; raises CaptureRefused and KernelFault."""
        paths = self._plane.paths
        with _named("other sets"):
            for pods in (paths.bpffs / "culvert").glob("*/v*/maps/pods"):
                if pods.parts[-4] != escape(paths.key) and _holds(pods, cookie):
                    text = f"its network namespace is in the pods of another node's set, {pods.parts[-4]}"
                    raise CaptureRefused(Refusal(RefusalKind.OTHER_SET, text))

    def capture(self, cookie: int, netns: int, addresses: Sequence[IPAddress]) -> None:
        """Steer what arrives, then capture what the pod dials; raises KernelFault."""
        plane = self._plane
        ip4 = next((address for address in addresses if address.version == 4), None)
        ip6 = next((address for address in addresses if address.version == 6), None)
        with _named("capture"):
            # Known first, so that `carry` serves the pod's sockets when the first connection is steered. A pod that
            # is captured already stays so throughout: nothing of it may leave in clear while it is added again.
            known = plane.pod(cookie)
            plane.enrol(cookie, ip4, ip6, PodFlag.INBOUND | (known.flags if known else PodFlag(0)))
            for address, entry in plane.addresses().items():
                if entry.netns == cookie and address not in addresses:
                    plane.remove_address(address)
            for address in addresses:
                plane.put_address(address, cookie, PodFlag.INBOUND)
            plane.attach_inbound(cookie, netns)
            plane.enrol(cookie, ip4, ip6, PodFlag.CAPTURE | PodFlag.INBOUND)

    def guard(self, cookie: int, netns: int) -> str:
        """Let only ztunnel open connections out of a captured pod. Returns why that does not hold; empty: it does."""
        try:
            if self.no_guard:
                self._plane.detach_guard(cookie)  # of an agent before us
                return self.no_guard
            ends = self._plane.attach_guard(cookie, netns)
            if not self._plane.is_guarded(cookie):
                return (
                    f"no end of its links is in the node's network namespace ({', '.join(ends.without) or 'no links'})"
                )
        except OSError as error:
            return str(error)
        # What the pod hid from us later is guarded all the same: its guard stays where it is.
        return (
            f"these links have no end on the node: {', '.join(ends.without)}" if ends.indexes and ends.without else ""
        )

    def guarded(self, pods: Mapping[int, int]) -> Collection[int]:
        """Of pods by cookie and descriptor: those about whose guard nothing is to be done; raises KernelFault."""
        with _named("guards"):
            return pods if self.no_guard else self._plane.guarded(pods)

    def refused_ports(self) -> Mapping[int, Sequence[int]]:
        """Mesh ports that pods' processes wanted to bind since they were captured, by cookie; raises KernelFault."""
        with _named("refused ports"):
            return {
                cookie: pod.refused_ports.numbers for cookie, pod in self._plane.pods().items() if pod.refused_ports
            }

    def uncapture(self, cookie: int) -> None:
        """New connections pass both ways, except those to the HBONE port; raises KernelFault."""
        with _named("end of capture"):
            self._plane.detach_guard(cookie)  # first: it would cut off a pod that is not captured
            if self._plane.pod(cookie) is not None:
                self._plane.set_flags(cookie, PodFlag(0))

    def release(self, cookie: int) -> None:
        """Remove everything of a pod; raises KernelFault."""
        with _named("release"):
            self._plane.unenrol(cookie)

    def close_fallbacks(self) -> int:
        """Have no pod reached past an absent ztunnel; how many could be until now. Raises KernelFault."""
        with _named("fallback"):
            found = self._plane.fallbacks()
            for cookie in found:
                self._plane.set_fallback(cookie, False)
            return len(found)

    def held(self) -> Mapping[int, bool]:
        """Namespaces of which something is left in maps or links, by cookie; True: captured. Raises KernelFault."""
        with _named("pods in the kernel"):
            found = {entry.netns: False for entry in self._plane.addresses().values()}
            found |= dict.fromkeys(self._plane.inbound_links(), False)
            pods = self._plane.pods()
            return found | {cookie: bool(pod.flags & PodFlag.CAPTURE) for cookie, pod in pods.items()}

    def counters(self) -> Mapping[str, int]:
        """How often each exit of a program was taken, by its name in lower case; raises KernelFault."""
        with _named("counters"):
            return {counter.name.lower(): count for counter, count in self._plane.counters().items()}

    def missing(self) -> str:
        """What of the set is not pinned any more, or not the one that we have open; empty: all is there."""
        paths = self._plane.paths
        if not paths.links.is_dir() or not any(paths.links.iterdir()):
            return f"{paths.links} is empty"
        for name in _OWN_MAPS:
            try:
                pinned = bpf.open_pin(paths.maps / name)
            except OSError as error:
                return str(error)
            try:
                if bpf.map_id(pinned) != bpf.map_id(self._plane.map_fd(name)):
                    return f"map {name} was replaced"
            finally:
                os.close(pinned)
        return ""


def _holds(pods: Path, cookie: int) -> bool:
    try:
        fd = bpf.open_pin(pods)
    except OSError as error:
        if error.errno == errno.ENOENT:  # unloaded meanwhile
            return False
        raise
    try:
        shape = bpf.map_shape(fd)  # another version's values may be longer than ours
        return bpf.map_lookup(fd, cookie.to_bytes(8, sys.byteorder), shape.value_size) is not None
    finally:
        os.close(fd)


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, MapFull, KeyError) as error:
        raise KernelFault(f"{what}: {error}") from error
