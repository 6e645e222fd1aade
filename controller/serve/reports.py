"""Capture reports of node agents: taken in, announced, and acknowledged once every node has heard.

An agent reads the acknowledgement as "peers now send HBONE to these pods" when it enrols, and as "peers no longer do"
when it drains, so it comes after the nodes' answers; a node that does not answer holds it up for a bounded time only.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc
from google.protobuf.message import DecodeError

from controller.pipeline import Pipeline
from controller.serve.callers import Caller, Gate, Right
from controller.serve.closing import SENTENCE, Closing
from controller.serve.hub import Hub
from controller.status.events import Refused
from controller.status.metrics import Metrics
from mesh.wire.agent_pb2 import CaptureAck, CaptureReport
from mesh.xds import ADDRESS_TYPE

log = logging.getLogger(__name__)

SERVICE = "culvert.agent.v1.CaptureReports"
METHOD = "Report"

# A healthy node answers within milliseconds; one that hangs must not keep all others from enrolling pods.
SETTLE_TIMEOUT_S = 5.0
# Kubernetes' own limit is 110 pods per node; ten times that is a broken agent.
MAX_PODS = 2000


ServicerContext = grpc.aio.ServicerContext[bytes, bytes]


class _Broken(Exception):
    """The agent does what the protocol does not allow; what nobody may do has a reason to be counted by."""

    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason


class _Latest:
    """The newest report that is not answered: generation, and the revision that announces it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._value = (0, 0)

    def put(self, generation: int, revision: int) -> None:
        self._value = (generation, revision)
        self._event.set()

    async def get(self) -> tuple[int, int]:
        await self._event.wait()
        self._event.clear()
        return self._value


class CaptureReports:
    """The gRPC method: one stream per agent."""

    def __init__(
        self,
        pipeline: Pipeline,
        hub: Hub,
        gate: Gate,
        metrics: Metrics,
        closing: Closing,
        settle_timeout_s: float = SETTLE_TIMEOUT_S,
    ) -> None:
        self._pipeline = pipeline
        self._hub = hub
        self._gate = gate
        self._metrics = metrics
        self._closing = closing
        self._settle_timeout_s = settle_timeout_s
        self.on_refused: Callable[[Refused], None] = lambda refused: None

    async def serve(self, requests: AsyncIterator[bytes], context: ServicerContext) -> None:
        """Serve an agent until it leaves. Its last report stays in force."""
        caller = await self._gate.admit(context, Right.NODE)
        log.info("agent of node %s connected", caller.node)
        self._pipeline.agent_came(caller.node)
        try:
            fault = await self._closing.run_until(
                self._follow(caller, requests, context), self._closing.stream_life_s()
            )
        finally:
            self._pipeline.agent_left(caller.node)
            log.info("agent of node %s disconnected; its last report stays in force", caller.node)
        if self._closing.is_set:
            await context.abort(grpc.StatusCode.UNAVAILABLE, SENTENCE)
        if fault is not None:
            log.warning("agent of node %s: %s", caller.node, fault)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, fault)

    async def _follow(self, caller: Caller, requests: AsyncIterator[bytes], context: ServicerContext) -> str | None:
        """Take reports until the agent closes; what it did wrong, or None."""
        latest = _Latest()
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._acknowledge(caller, latest, context), name=f"acks-{caller.node}")
            fault = await self._take_all(caller, requests, latest)
            answering.cancel()
        return fault

    async def _take_all(self, caller: Caller, requests: AsyncIterator[bytes], latest: _Latest) -> str | None:
        last = 0
        try:
            async for data in requests:
                report = _read(data, caller, last)
                last = report.generation
                self._metrics.capture_reports.inc()
                self._tell_refused(report)
                pods = {f"{pod.namespace}/{pod.name}": pod.uid for pod in report.pods}
                latest.put(last, self._pipeline.report(report.node, pods))
        except _Broken as error:
            if error.reason:
                self._metrics.callers_refused.labels(error.reason).inc()
            return str(error)
        return None

    def _tell_refused(self, report: CaptureReport) -> None:
        """A node has a say about its own pods only."""
        for one in report.refused:
            pod = self._pipeline.inputs.index.pod(f"{one.namespace}/{one.name}")
            if pod is not None and pod.node == report.node and pod.uid == one.uid:
                self.on_refused(Refused(one.namespace, one.name, one.uid, one.reason, one.message))

    async def _acknowledge(self, caller: Caller, latest: _Latest, context: ServicerContext) -> None:
        """Answer the newest report again and again; an answer stands for the earlier ones too.

        Reports are taken in meanwhile: a node that is slow to answer delays answers to agents, never announcements.
        """
        while True:
            generation, revision = await latest.get()
            if not await self._hub.wait_settled(ADDRESS_TYPE, revision, self._settle_timeout_s):
                self._metrics.captures_unsettled.inc()
                log.warning(
                    "report %d of node %s is acknowledged, but some node has not answered its announcement for %g s",
                    generation,
                    caller.node,
                    self._settle_timeout_s,
                )
            await context.write(CaptureAck(generation=generation).SerializeToString())


def _read(data: bytes, caller: Caller, last: int) -> CaptureReport:
    try:
        report = CaptureReport.FromString(data)
    except DecodeError as error:
        raise _Broken(f"not a report: {error}") from error
    if report.node != caller.node:
        raise _Broken(f"a report for node {report.node[:253]!r} from node {caller.node!r}", "another_node")
    if report.generation <= last:
        raise _Broken(f"generation {report.generation} after {last}")
    if len(report.pods) + len(report.refused) > MAX_PODS:
        raise _Broken(f"{len(report.pods) + len(report.refused)} pods in a report; {MAX_PODS} is the limit")
    return report
