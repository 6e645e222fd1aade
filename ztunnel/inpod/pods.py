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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mesh.identity import Identity
from mesh.netns import inside
from ztunnel.inpod.listeners import HBONE_PORT, INBOUND_PORT, Listeners, adopt_listeners, open_listeners

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
    listening: Mapping[str, int] = field(default_factory=dict)  # descriptors of the engine's, while it is served
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

    def is_served(self, uid: str, netns: int) -> bool:
        """Whether to add this pod would open nothing anew."""
        known = self._by_uid.get(uid)
        return known is not None and known.netns_key == _key(netns)

    def add(self, info: PodInfo, netns: int, inherited: Mapping[str, int] | None = None) -> None:
        """Serve a pod; takes the descriptors, also on failure. The same pod and namespace again opens nothing anew.

        `inherited` are listening sockets of the ztunnel before this one. Raises PortTaken, InvalidIdentity or OSError;
        then nothing of the pod is left behind.
        """
        key = _key(netns)
        listeners = adopt_listeners(netns, inherited) if inherited else None
        known = self._by_uid.get(info.uid)
        if known is not None and known.netns_key == key:
            if listeners is not None:
                listeners.close()
            os.close(netns)
            self._added(known)  # an agent that was without us may have cleared what we say of the pod in the kernel
            return
        if known is not None:
            self.remove(info.uid)
        try:
            pod = self._by_uid[info.uid] = self._open(info, netns, key, listeners)
        except BaseException:
            os.close(netns)
            raise
        self._added(pod)
        log.info("serving pod %s/%s", info.namespace, info.name)

    def _open(self, info: PodInfo, netns: int, key: tuple[int, int], adopted: Listeners | None) -> Pod:
        try:
            identity = self._identity_of(info)
        except BaseException:
            if adopted is not None:
                adopted.close()
            raise
        listeners = adopted or open_listeners(netns, self._slots.mark_own)
        pod = Pod(
            number=next(self._numbers),
            info=info,
            identity=identity,
            workload_uid=self._workload_uid_of(info),
            netns=netns,
            netns_key=key,
            netns_cookie=listeners.netns_cookie,
            listening=listeners.by_kind(),
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

    def identities(self) -> list[tuple[str, str]]:
        """Namespace and service account of the pods, without repetition."""
        return sorted({(pod.info.namespace, pod.info.service_account) for pod in self})

    def listening(self, uid: str) -> dict[str, int]:
        """A pod's listening sockets, which stay the engine's; empty for one that is not served."""
        pod = self._by_uid.get(uid)
        return dict(pod.listening) if pod is not None else {}

    def hand_over(self, uids: Sequence[str]) -> None:
        """Accept no more for these pods: another ztunnel does, on the same sockets. What is open lives on."""
        for uid in uids:
            self.remove(uid)

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


def _key(netns: int) -> tuple[int, int]:
    status = os.fstat(netns)
    return (status.st_dev, status.st_ino)


def has_network(netns: int) -> bool:
    """Whether a namespace still has an interface other than loopback, as a pod has until it is torn down."""
    return any(name != "lo" for _, name in inside(netns, socket.if_nameindex))
