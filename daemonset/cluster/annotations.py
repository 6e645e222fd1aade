"""Writes on each pod whether it is captured, for controllers that no agent's stream reaches and for people.

Level triggered: what should be there is compared with what the watch shows, at the start and after each change, so
what an earlier agent left, or one before a reboot, is put right. One pod at a time is patched, under its uid; what
fails is tried again with backoff. This module alone writes the annotation.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import NamedTuple

from daemonset.agent import Agent
from daemonset.cluster.records import Record
from daemonset.cluster.source import ClusterSource
from daemonset.lifecycle import Goal, State
from daemonset.pods import RefusalKind
from mesh.enrolment import BYPASSING, CAPTURE_ANNOTATION, CAPTURED, ISTIO_ANNOTATION, PENDING
from mesh.kube.api import Api
from mesh.kube.backoff import Backoff
from mesh.kube.errors import ApiFault, Conflict, Invalid, NotFound
from mesh.kube.resources import PODS

log = logging.getLogger(__name__)

# What stands against a pod that is still being started.
NOT_YET = (RefusalKind.NO_NAMESPACE, RefusalKind.NO_ADDRESS)
# What the watch does not show in this time was lost: written again.
ECHO_S = 10.0


class Words(NamedTuple):
    """The annotations of a pod; empty: none."""

    own: str
    istio: str


class Annotator:
    """Keeps the annotations of this node's pods; `changed` may be called at any time.

    With `for_istio` Istio's control plane reads them: a captured pod also carries what Istio's CNI would write.
    """

    def __init__(self, api: Api, source: ClusterSource, agent: Agent, *, for_istio: bool = False) -> None:
        self._api = api
        self._source = source
        self._agent = agent
        self._for_istio = for_istio
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._backoff = Backoff(longest_s=30.0)
        self._written: dict[str, tuple[Words, float]] = {}  # and when, until the watch shows it
        self.fault = ""

    def changed(self) -> None:
        """A pod's state or document is another now."""
        self._changed.set()

    async def written(self) -> None:
        """Returns once what stands for the pods now, or what came after it, is written on them."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._changed.set()
        await future

    async def run(self) -> None:
        """Write for as long as the task lives."""
        while True:
            self._changed.clear()
            asked = len(self._waiting)  # who asks during this pass may mean a pod that it has gone by
            try:
                for record, wanted in list(self._differences()):
                    await self._write(record, wanted)
                self._backoff.reset()
                self.fault = ""
                self._answer(asked)
            except ApiFault as fault:
                if not self.fault:
                    log.warning("pods cannot be annotated: %s", fault)
                self.fault = str(fault)
                await asyncio.sleep(self._backoff.next_s(fault.retry_after_s))
                continue
            try:
                async with asyncio.timeout(ECHO_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _answer(self, count: int) -> None:
        answered, self._waiting = self._waiting[:count], self._waiting[count:]
        for future in answered:
            if not future.done():
                future.set_result(None)

    def wanted(self, uid: str) -> str:
        """What a pod's annotation should say; empty: nothing."""
        worker = self._agent.worker(uid)
        if worker is None:
            refusal = self._agent.refusals.get(uid)
            return "" if refusal is None else PENDING if refusal.kind in NOT_YET else BYPASSING
        if worker.goal is not Goal.ENROL:
            return BYPASSING
        if worker.captured:
            return CAPTURED
        return BYPASSING if worker.state in (State.REFUSED, State.FAILED) else PENDING

    def _words(self, own: str) -> Words:
        return Words(own, CAPTURED if own == CAPTURED and self._for_istio else "")

    def _shown(self, record: Record) -> Words:
        return Words(record.annotation, record.istio_annotation if self._for_istio else "")

    def _differences(self) -> Iterator[tuple[Record, Words]]:
        now = asyncio.get_running_loop().time()
        self._written = {uid: entry for uid, entry in self._written.items() if uid in self._source.records}
        for uid, record in self._source.records.items():
            wanted = self._words("" if record.has_ended else self.wanted(uid))
            shown = self._shown(record)
            written, since = self._written.get(uid, (shown, 0.0))
            if uid in self._written and (shown == written or now - since > ECHO_S):
                del self._written[uid]
            there = written if uid in self._written else shown
            if wanted != there:
                yield record, wanted

    async def _write(self, record: Record, wanted: Words) -> None:
        annotations = {CAPTURE_ANNOTATION: wanted.own or None}
        if self._for_istio:  # elsewhere it is another's
            annotations[ISTIO_ANNOTATION] = wanted.istio or None
        patch = {"metadata": {"uid": record.uid, "annotations": annotations}}
        try:
            await self._api.merge_patch(PODS, record.name, patch, record.namespace)
        except (NotFound, Conflict):
            return  # gone meanwhile: the watch will tell
        except Invalid as fault:  # what the server says of another uid: a successor of that name
            log.info("pod %s is not annotated: %s", record.full_name, fault)
            return
        self._written[record.uid] = (wanted, asyncio.get_running_loop().time())
