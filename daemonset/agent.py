"""From a snapshot of pods to one worker per enrolled pod.

Level triggered: `reconcile` may be called with any snapshot at any time and sets each worker's goal from it. Pods are
known by uid, what the kernel holds by netns cookie: a uid that shows up with another namespace is let go and enrolled
anew. The workers' table belongs to this module; it is changed from the loop only.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from daemonset.enrolment import KernelFault, Pace, Worker, World
from daemonset.lifecycle import Goal
from daemonset.pods import Pod, Refusal, RefusalKind, Snapshot, wish_of
from mesh import netns
from mesh.aio import Background

log = logging.getLogger(__name__)

# Every pod goes through these, or another node's agent has to say more.
_PASSING = frozenset({RefusalKind.NO_ADDRESS, RefusalKind.NO_NAMESPACE, RefusalKind.OTHER_NODE})


@dataclass(frozen=True, slots=True)
class OpenNetns:
    """A pod's namespace, open; whoever holds this owns the descriptor."""

    fd: int
    cookie: int


class Namespaces(Protocol):
    """Access to network namespaces, so that tests need none. Both raise OSError."""

    def open(self, path: str) -> OpenNetns:
        """Open the namespace at a path."""

    def is_same(self, fd: int, path: str) -> bool:
        """Whether the path still leads to that namespace."""


class KernelNamespaces:
    """The real ones."""

    def open(self, path: str) -> OpenNetns:
        """Open the namespace at a path; raises OSError when it is none."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not netns.is_network_namespace(fd):
                raise OSError(f"{path} is not a network namespace")
            return OpenNetns(fd, netns.cookie(fd))
        except BaseException:
            os.close(fd)
            raise

    def is_same(self, fd: int, path: str) -> bool:
        """Compared by inode, which cannot be used again while the descriptor is open."""
        held, there = os.fstat(fd), os.stat(path)  # noqa: PTH116 - one of them has no path
        return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)


@dataclass(frozen=True, slots=True)
class Here:
    """The node that an agent works for."""

    node: str
    cookie: int  # of its own network namespace
    istio_labels: bool = False  # whether istio.io/dataplane-mode is honoured


class Agent:
    """Keeps a worker for every pod that is in the mesh, on its way in or on its way out."""

    def __init__(self, here: Here, world: World, pace: Pace, namespaces: Namespaces, background: Background) -> None:
        self._here = here
        self._world = world
        self._pace = pace
        self._namespaces = namespaces
        self._background = background
        self._workers: dict[str, Worker] = {}
        self._adoptable: dict[int, bool] = {}  # what the kernel held when we started: captured or not, by cookie
        self._snapshot = Snapshot({}, {})
        self.refusals: Mapping[str, Refusal] = {}

    @property
    def snapshot(self) -> Snapshot:
        """What the source said last."""
        return self._snapshot

    @property
    def workers(self) -> Iterator[Worker]:
        """All of them."""
        return iter(self._workers.values())

    def refused(self) -> list[tuple[Pod, Refusal]]:
        """Pods of this node that ask for the mesh and cannot be in it; not those that only have not started yet."""
        pods = self._snapshot.pods
        found = [(pods[uid], refusal) for uid, refusal in self.refusals.items() if uid in pods]
        for worker in self._workers.values():
            if worker.refused is not None:
                found.append((worker.pod, Refusal(worker.refused, worker.reason)))
        return [(pod, refusal) for pod, refusal in found if refusal.kind not in _PASSING]

    def conflicts(self) -> list[tuple[Pod, Refusal]]:
        """Captured pods of which a process wants a port that is the mesh's."""
        return [(one.pod, one.conflict) for one in self._workers.values() if one.captured and one.conflict is not None]

    def worker(self, uid: str) -> Worker | None:
        """The one of a pod, if it is in the mesh, on its way in or out."""
        return self._workers.get(uid)

    def start(self, snapshot: Snapshot, held: Mapping[int, bool]) -> None:
        """Begin with a first snapshot and with what the kernel holds (captured or draining, by cookie).

        Pods that the kernel holds and that still run are taken over as they are.
        """
        self._adoptable = dict(held)
        self.reconcile(snapshot)

    def reconcile(self, snapshot: Snapshot) -> None:
        """Set every worker's goal from a snapshot."""
        for fault in snapshot.faults:
            if fault not in self._snapshot.faults:
                log.warning("%s", fault)
        self._snapshot = snapshot
        for uid, worker in self._workers.items():
            if uid not in snapshot.pods:
                worker.aim(Goal.GONE)
        refusals: dict[str, Refusal] = {}
        for pod in snapshot.pods.values():
            refusal = self._place(pod)
            if refusal is not None:
                refusals[pod.uid] = refusal
                if self.refusals.get(pod.uid) != refusal:
                    log.warning("pod %s is not enrolled: %s", pod.full_name, refusal)
        self.refusals = refusals
        if not snapshot.faults:  # else what nobody seems to own may be the pod that could not be read
            self._remove_orphans()
        self._world.changed()

    def _remove_orphans(self) -> None:
        for cookie in list(self._adoptable):
            log.info("namespace %d belongs to no pod of this node any more, removing it", cookie)
            try:
                self._world.kernel.release(cookie)
            except KernelFault as fault:
                log.warning("namespace %d: %s; tried again with the next change", cookie, fault)
                continue
            del self._adoptable[cookie]

    def lost(self, uid: str, reason: str) -> None:
        """No ztunnel listens for a pod any more."""
        if (worker := self._workers.get(uid)) is not None:
            worker.lost(reason)

    def check_guards(self) -> None:
        """Make good what became of the guards: a pod may get further links, or its link anew, while it runs."""
        captured = {worker.cookie: worker for worker in self._workers.values() if worker.captured}
        try:
            standing = self._world.kernel.guarded({cookie: worker.netns for cookie, worker in captured.items()})
        except KernelFault as fault:
            log.warning("%s; looked at again soon", fault)
            return
        for cookie, worker in captured.items():
            if cookie not in standing:
                worker.guard()

    def check_ports(self) -> None:
        """See which pods' processes wanted to bind ports of the mesh: nobody else can tell why they do not start."""
        try:
            refused = self._world.kernel.refused_ports()
        except KernelFault as fault:
            log.warning("%s; looked at again soon", fault)
            return
        for worker in self._workers.values():
            worker.was_refused(refused.get(worker.cookie, ()))

    def _place(self, pod: Pod) -> Refusal | None:
        wish = wish_of(pod, self._snapshot.namespaces, self._here.node, istio_labels=self._here.istio_labels)
        worker = self._workers.get(pod.uid)
        if worker is None:
            if wish.refusal is not None and not wish.enrol:
                return wish.refusal
            return wish.refusal or self._begin(pod, enrol=wish.enrol)
        if not self._is_same_netns(worker, pod):
            worker.aim(Goal.GONE)  # and enrolled anew when nothing of it is left
        elif wish.refusal is not None:
            return wish.refusal  # what is enrolled stays so until its labels say otherwise
        else:
            worker.aim(Goal.ENROL if wish.enrol else Goal.UNENROL, pod)
        return None

    def _is_same_netns(self, worker: Worker, pod: Pod) -> bool:
        try:
            return self._namespaces.is_same(worker.netns, pod.netns)
        except OSError:
            return False

    def _begin(self, pod: Pod, *, enrol: bool) -> Refusal | None:
        if not enrol and not self._adoptable:
            return None
        try:
            opened = self._namespaces.open(pod.netns)
        except OSError as error:
            return Refusal(RefusalKind.NO_NAMESPACE, f"its network namespace: {error}") if enrol else None
        refusal = self._refuse(opened.cookie) if enrol else None
        held = self._adoptable.pop(opened.cookie, None) if refusal is None else None
        if refusal is not None or (held is None and not enrol):
            os.close(opened.fd)
            return refusal
        worker = Worker(pod, opened.fd, opened.cookie, self._world, self._pace)
        if held is not None:
            worker.adopt(captured=held)
        worker.aim(Goal.ENROL if enrol else Goal.UNENROL)
        self._workers[pod.uid] = worker
        self._background.run_once(self._follow(worker), f"pod {pod.full_name}")
        return None

    def _refuse(self, cookie: int) -> Refusal | None:
        if cookie == self._here.cookie:
            return Refusal(RefusalKind.HOST_NETWORK, "the pod shares the node's network namespace")
        for other in self._workers.values():
            if other.cookie == cookie:
                text = f"the pod shares its network namespace with {other.pod.full_name}"
                return Refusal(RefusalKind.SHARED_NAMESPACE, text)
        return None

    async def _follow(self, worker: Worker) -> None:
        await worker.run()
        del self._workers[worker.pod.uid]
        self.reconcile(self._snapshot)  # the same pod may be wanted again, perhaps in another namespace
