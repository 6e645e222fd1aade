"""The pods that this ztunnel serves: added and removed by the agent's word, one entry each.

Adding opens the listeners, hands them to the engine, puts them into the kernel's slots and asks for the identity's
certificate; removing undoes it. The table is written by this module only, from the event loop. A pod is known by the
uid that the agent gave; its number names it at the engine and is never used twice.
"""

import itertools
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from mesh.identity import Identity
from mesh.netns import inside
from ztunnel.inpod.listeners import HBONE_PORT, INBOUND_PORT, Listeners, open_listeners

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodInfo:
    """What the agent says of a pod."""

    uid: str
    namespace: str
    name: str
    service_account: str


@dataclass(slots=True)
class Pod:
    """A pod that is served. `netns` is ours to close."""

    number: int
    info: PodInfo
    identity: Identity
    workload_uid: str
    netns: int
    netns_key: tuple[int, int]  # device and inode: the same namespace whatever descriptor shows it
    netns_cookie: int
    left_at: float = 0.0  # loop time at which the agent took it back


# Connections that were being set up when the agent took a pod back still get this long to open.
LEAVE_GRACE_S = 15.0


class PodSlots(Protocol):
    """The kernel's side of a pod: `notes` and `listeners` of the plane."""

    def mark_own(self, fd: int) -> None:
        """Write the `own` note of a socket."""

    def put_listener(self, netns_cookie: int, port: int, fd: int) -> None:
        """Steer connections that arrive for `port` to this listener."""


class PodSink(Protocol):
    """The engine's side of a pod."""

    def add_pod(self, number: int, workload_uid: str, identity: str, netns: int, listeners: Listeners) -> None:
        """Serve it; descriptors become the engine's."""

    def remove_pod(self, number: int, *, drain: bool) -> None:
        """Close its listeners; its connections too, unless `drain`."""


class Identities(Protocol):
    """Certificates by identity."""

    def acquire(self, identity: Identity) -> None:
        """Have one ready."""

    def release(self, identity: Identity) -> None:
        """One user less."""


class PodTable:
    """Adds and removes pods; owns their namespaces' descriptors."""

    def __init__(
        self,
        slots: PodSlots,
        engine: PodSink,
        identities: Identities,
        identity_of: Callable[[PodInfo], Identity],
        workload_uid_of: Callable[[PodInfo], str],
        added: Callable[[Pod], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._engine = engine
        self._identities = identities
        self._identity_of = identity_of
        self._workload_uid_of = workload_uid_of
        self._added = added
        self._clock = clock
        self._by_uid: dict[str, Pod] = {}
        self._numbers = itertools.count(1)
        self._leaving: dict[int, Pod] = {}

    def __iter__(self) -> Iterator[Pod]:
        return iter(self._by_uid.values())

    def __contains__(self, uid: str) -> bool:
        return uid in self._by_uid

    def by_number(self, number: int) -> Pod | None:
        """The pod of an engine event, also while it drains."""
        for pod in itertools.chain(self._by_uid.values(), self._leaving.values()):
            if pod.number == number:
                return pod
        return None

    def add(self, info: PodInfo, netns: int) -> None:
        """Serve a pod; takes the descriptor, also on failure. The same pod and namespace again opens nothing anew.

        Raises PortTaken, InvalidIdentity or OSError; then nothing of the pod is left behind.
        """
        status = os.fstat(netns)
        key = (status.st_dev, status.st_ino)
        known = self._by_uid.get(info.uid)
        if known is not None and known.netns_key == key:
            os.close(netns)
            self._added(known)  # an agent that was without us may have cleared what we say of the pod in the kernel
            return
        if known is not None:
            self.remove(info.uid)
        try:
            pod = self._by_uid[info.uid] = self._open(info, netns, key)
        except BaseException:
            os.close(netns)
            raise
        self._added(pod)
        log.info("serving pod %s/%s", info.namespace, info.name)

    def _open(self, info: PodInfo, netns: int, key: tuple[int, int]) -> Pod:
        identity = self._identity_of(info)
        listeners = open_listeners(netns, self._slots.mark_own)
        pod = Pod(
            number=next(self._numbers),
            info=info,
            identity=identity,
            workload_uid=self._workload_uid_of(info),
            netns=netns,
            netns_key=key,
            netns_cookie=listeners.netns_cookie,
        )
        try:
            self._slots.put_listener(pod.netns_cookie, INBOUND_PORT, listeners.inbound.fileno())
            self._slots.put_listener(pod.netns_cookie, HBONE_PORT, listeners.hbone.fileno())
        except BaseException:
            listeners.close()  # closing a socket empties its slot
            raise
        self._engine.add_pod(pod.number, pod.workload_uid, str(identity), os.dup(netns), listeners)
        self._identities.acquire(identity)
        return pod

    def remove(self, uid: str) -> None:
        """Stop serving a pod; unknown is fine. What is open lives on while the pod's network does."""
        pod = self._by_uid.pop(uid, None)
        if pod is None:
            return
        alive = has_network(pod.netns)
        pod.left_at = self._clock()
        self._leaving[pod.number] = pod
        self._engine.remove_pod(pod.number, drain=alive)
        log.info("no longer serving pod %s/%s%s", pod.info.namespace, pod.info.name, ", draining" if alive else "")

    def removed(self, number: int) -> None:
        """The engine has nothing of the pod any more."""
        pod = self._leaving.pop(number, None)
        if pod is not None:
            os.close(pod.netns)
            self._identities.release(pod.identity)

    def sweep(self, busy: Callable[[], set[int]]) -> None:
        """Let go of drained pods that have no connection left, or no network; `busy` says which have connections."""
        if not self._leaving:
            return
        settled = [pod for pod in self._leaving.values() if self._clock() - pod.left_at > LEAVE_GRACE_S]
        in_use = busy() if settled else set()
        for pod in list(self._leaving.values()):
            is_done = pod in settled and pod.number not in in_use
            if is_done or not has_network(pod.netns):
                self._engine.remove_pod(pod.number, drain=False)

    def keep_only(self, uids: set[str]) -> None:
        """End of the agent's snapshot: what it did not mention is gone."""
        for uid in [uid for uid in self._by_uid if uid not in uids]:
            self.remove(uid)


def has_network(netns: int) -> bool:
    """Whether a namespace still has an interface other than loopback, as a pod has until it is torn down."""
    return any(name != "lo" for _, name in inside(netns, socket.if_nameindex))
