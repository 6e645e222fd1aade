"""Who of several controllers writes: the holder of a Lease.

Times are client-go's: the holder renews every 2 s, gives up when it could not for 10 s, and another may take the lease
15 s after it last *saw* it change, or go: a Lease that somebody deletes is made anew by its holder. Nobody compares
another machine's clock with its own; the times in the Lease are for people. `is_leader` is a question about now: it
turns false by itself when renewing has failed for too long, also while the loop was busy with something else, five
seconds before anybody else can become leader. A write that begins while it is true and takes less than that is over in
time.
"""

import asyncio
import contextlib
import datetime
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mesh.kube.api import Api, Document
from mesh.kube.errors import ApiFault, Conflict, NotFound
from mesh.kube.resources import LEASES

log = logging.getLogger(__name__)

LEASE = "culvert-controller"
# Anything that only a leader writes takes at most this long.
WRITE_TIMEOUT_S = 4.0


class Leadership(Protocol):
    """Whether this controller writes."""

    @property
    def is_leader(self) -> bool:
        """It does, now."""


class Alone:
    """The only controller there is."""

    is_leader = True


@dataclass(frozen=True, slots=True)
class Times:
    """Of an election, in seconds."""

    duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0
    request_s: float = WRITE_TIMEOUT_S


class Election:
    """Takes part in the election of a leader for as long as `run` runs; hands the lease back at its end."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str = "",
        times: Times | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self.identity = identity or f"{socket.gethostname()}_{os.urandom(4).hex()}"
        self._times = times or Times()
        self._clock = clock
        self._renewed_at = float("-inf")
        self._seen: tuple[str, str] = ("", "")  # holder and resourceVersion of the lease
        self._seen_at = float("-inf")
        self._is_ours = False  # the lease as it was seen last has our name in it because we wrote it
        self._ours: Document = {}  # as we wrote it last
        self._was_leader = False
        self._fault = ""
        self.holder = ""
        self.on_change: Callable[[bool], None] = lambda is_leader: None

    @property
    def is_leader(self) -> bool:
        """The lease is held, and was renewed lately enough."""
        return self._clock() < self._renewed_at + self._times.renew_deadline_s

    async def run(self) -> None:
        """Take the lease whenever it is free, keep it, tell `on_change`."""
        try:
            while True:
                await self._try()
                self._tell()
                await asyncio.sleep(self._times.retry_s * random.uniform(0.9, 1.1))
        finally:
            await self._release()

    async def _try(self) -> None:
        try:
            async with asyncio.timeout(self._times.renew_deadline_s):
                await self._step()
            self._say("")
        except Conflict:
            self._say("")
            log.debug("another controller was faster")
        except (ApiFault, TimeoutError) as fault:
            self._say(str(fault) or "no answer in time")

    def _say(self, fault: str) -> None:
        """What keeps us from the lease, when it changes: it is tried every two seconds."""
        before, self._fault = self._fault, fault
        if fault and fault != before:
            log.warning("lease %s/%s: %s", self._namespace, LEASE, fault)
        elif before and not fault:
            log.info("lease %s/%s can be read and written again", self._namespace, LEASE)

    async def _step(self) -> None:
        started = self._clock()
        if self._ours:
            try:
                return await self._write(self._ours)
            except (Conflict, NotFound):
                log.debug("the lease is not as we left it")
        try:
            lease = await self._api.get(LEASES, LEASE, self._namespace, timeout_s=self._times.request_s)
        except NotFound:
            lease = {}
        leads = self.is_leader
        holder = self._observe(lease)
        has_waited = started >= self._seen_at + self._times.duration_s
        # That a Lease is gone does not say that its holder has stopped: only who leads makes it anew at once.
        is_free = has_waited or (not holder if lease else leads)
        if self._is_ours or is_free:
            await self._write(lease)

    async def _write(self, lease: Document) -> None:
        """Take the lease or renew it; that counts from before it is asked for, however long it takes."""
        started = self._clock()
        document = self._document(lease)
        self._is_ours = True  # also if the answer is lost; what comes next says who was faster
        write = self._api.replace if lease else self._api.create
        self._ours = await write(LEASES, document, self._namespace, timeout_s=self._times.request_s)
        self._observe(self._ours)
        self._renewed_at = started

    def _observe(self, lease: Document) -> str:
        holder = str((lease.get("spec") or {}).get("holderIdentity") or "")
        seen = holder, str((lease.get("metadata") or {}).get("resourceVersion", ""))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        if holder != self.identity:
            # From now on it is somebody's, even if it comes back to us by itself, from a restored storage: who held it
            # until then may believe for a while yet that it leads.
            self._renewed_at, self._is_ours, self._ours = float("-inf"), False, {}
        self.holder = holder
        return holder

    def _document(self, lease: Document, holder: str | None = None) -> Document:
        spec: dict[str, Any] = dict(lease.get("spec") or {})
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if spec.get("holderIdentity") != self.identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + bool(lease)
        spec |= {"holderIdentity": self.identity, "renewTime": now}
        spec["leaseDurationSeconds"] = max(1, round(self._times.duration_s))
        if holder is not None:
            spec |= {"holderIdentity": holder, "leaseDurationSeconds": 1}
        labels = {"app.kubernetes.io/part-of": "culvert", "app.kubernetes.io/managed-by": "culvert"}
        metadata = lease.get("metadata") or {"name": LEASE, "namespace": self._namespace, "labels": labels}
        return {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": metadata, "spec": spec}

    def _tell(self) -> None:
        is_leader = self.is_leader
        if is_leader != self._was_leader:
            self._was_leader = is_leader
            log.info("this controller (%s) is %s", self.identity, "the leader" if is_leader else "no longer the leader")
            self.on_change(is_leader)

    async def _release(self) -> None:
        """Another controller need not wait."""
        if not self.is_leader:
            return
        self._renewed_at = float("-inf")
        self._tell()
        with contextlib.suppress(ApiFault, TimeoutError):
            async with asyncio.timeout(self._times.request_s):
                lease = await self._api.get(LEASES, LEASE, self._namespace, timeout_s=self._times.request_s)
                if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                    await self._api.replace(LEASES, self._document(lease, holder=""), self._namespace)
