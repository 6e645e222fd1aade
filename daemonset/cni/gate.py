"""Lets a pod start once it is captured, or once it is known that it is not to be captured.

Waits for the pod's worker and for nothing that waits for the pod: not for the controller, not for the kubelet's word of
the pod's address (the plugins before gave it), not for the watch (a pod that it has not shown yet is asked for). What
it does wait for, programs and a ztunnel, runs on the node's own network and needs no pod.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from daemonset.agent import Agent
from daemonset.cluster.namespaces import Sandbox, Sandboxes
from daemonset.cluster.records import Record
from daemonset.cni.protocol import Call, Code, Refused
from daemonset.lifecycle import State
from daemonset.pods import RefusalKind
from mesh.enrolment import asked_by
from mesh.kube.errors import ApiFault, NotFound

log = logging.getLogger(__name__)

# Worth less than the server's own deadline: then the sentence says what was waited for.
PATIENCE_S = 40.0
# What the agent refuses and what is no reason to keep a pod from starting: it does not ask for the mesh in words that
# are understood, and shows as refused.
_HARMLESS = (RefusalKind.LABEL, RefusalKind.HOST_NETWORK)


class Pods(Protocol):
    """The source of pods."""

    async def look_up(self, namespace: str, name: str, uid: str) -> Record:
        """A pod of this node; raises NotFound and other ApiFault."""

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        """What is known of a namespace."""

    def touch(self) -> None:
        """Sandboxes have changed."""


class Starting(Protocol):
    """How far the agent is."""

    @property
    def agent(self) -> Agent | None:
        """None until it works."""

    @property
    def step(self) -> str:
        """What it waits for; empty: nothing."""


class Gate:
    """Answers the plugin's calls."""

    def __init__(self, pods: Pods, sandboxes: Sandboxes, starting: Starting, *, istio_labels: bool) -> None:
        self._pods = pods
        self._sandboxes = sandboxes
        self._starting = starting
        self._istio_labels = istio_labels
        self._waiting: set[asyncio.Future[None]] = set()

    def changed(self) -> None:
        """A worker's state or a refusal is another now."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def answer(self, call: Call) -> None:
        """Return when the plugin shall succeed; raises Refused."""
        match call.command:
            case "ADD":
                await self._add(call)
            case "DEL":
                self._sandboxes.remove(call.uid, call.container)
                self._pods.touch()
            case _:
                await self._check(call)

    async def _add(self, call: Call) -> None:
        record = await self._record(call)
        assert call.netns is not None, "the protocol lets no ADD through without it"
        try:
            sandbox = self._sandboxes.give(record.uid, call.container, call.netns, call.addresses())
        except OSError as error:
            raise Refused(Code.INVALID_CONFIG, f"pod {call.full_name}: its network namespace: {error}") from error
        self._pods.touch()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not self._may_start(record, sandbox):
                    await self._change()
        except TimeoutError:
            raise Refused(
                Code.TRY_AGAIN_LATER, f"pod {call.full_name} is not captured yet: {self._why_not(record)}"
            ) from None

    async def _check(self, call: Call) -> None:
        try:
            record = await self._record(call)
        except Refused:
            return  # nothing known is nothing to complain about
        worker = self._starting.agent.worker(record.uid) if self._starting.agent else None
        if worker is not None and self._asks(record) and not worker.captured:
            raise Refused(Code.TRY_AGAIN_LATER, f"pod {call.full_name} is not captured: {worker.reason}")

    async def _record(self, call: Call) -> Record:
        if not call.namespace or not call.name:
            raise Refused(Code.INVALID_CONFIG, "the runtime does not say which pod it starts (K8S_POD_NAME)")
        try:
            return await self._pods.look_up(call.namespace, call.name, call.uid)
        except NotFound:
            text = f"the API server knows no pod {call.full_name} with uid {call.uid or '?'}"
            raise Refused(Code.TRY_AGAIN_LATER, text) from None
        except ApiFault as fault:
            text = f"whether pod {call.full_name} is in the mesh is not known: {fault}"
            raise Refused(Code.TRY_AGAIN_LATER, text) from fault

    def _asks(self, record: Record) -> bool:
        labels = self._pods.namespace_labels(record.namespace)
        return asked_by(record.labels, labels, istio_labels=self._istio_labels).enrol

    def _may_start(self, record: Record, sandbox: Sandbox) -> bool:
        if not self._asks(record):
            return True
        agent = self._starting.agent
        if agent is None:
            return False
        if (refusal := agent.refusals.get(record.uid)) is not None:
            return refusal.kind in _HARMLESS
        worker = agent.worker(record.uid)
        return (
            worker is not None
            and worker.captured
            and worker.state is State.CAPTURED
            and self._sandboxes.is_same(worker.netns, sandbox.path)
        )

    def _why_not(self, record: Record) -> str:
        agent = self._starting.agent
        if agent is None:
            return f"Culvert's node agent waits for {self._starting.step or 'its first list of pods'}"
        if (refusal := agent.refusals.get(record.uid)) is not None:
            return str(refusal)
        worker = agent.worker(record.uid)
        return (worker.reason or f"it is {worker.state}") if worker is not None else "its turn has not come"

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait({future}, timeout=0.5)  # labels change without a word from a worker
        finally:
            self._waiting.discard(future)
