"""Tells the controller which pods of this node are captured (`culvert.agent.v1.CaptureReports`).

The whole set goes out on each new stream and after each change; the controller answers a report once what follows from
it is announced. One task talks; the set is changed by the workers between its turns. A controller that is away delays
announcements, never enrolment: the set is kept and sent when it is back.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Protocol

from daemonset.pods import Pod, Refusal
from mesh.wire import agent_pb2 as wire

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 15.0

# How often renewed credentials are looked for.
CREDENTIALS_CHECK_S = 10.0


class ControllerAway(Exception):
    """The stream has ended or never began; the text says why."""


class StreamOver(ControllerAway):
    """The stream ended as streams do; another one follows."""


class ReportStream(Protocol):
    """One stream to the controller; both raise ControllerAway."""

    async def write(self, report: wire.CaptureReport) -> None:
        """Send a report."""

    async def read(self) -> wire.CaptureAck:
        """Wait for the next answer."""

    def is_stale(self) -> bool:
        """Whether a new stream would show other credentials."""


# Opens a stream, to be left when it has ended; raises ControllerAway.
OpenStream = Callable[[], contextlib.AbstractAsyncContextManager[ReportStream]]


class Reports:
    """The set of captured pods, and the conversation about it."""

    def __init__(self, node: str, open_stream: OpenStream) -> None:
        self._node = node
        self._open_stream = open_stream
        self._pods: dict[str, Pod] = {}
        self._refused: list[tuple[Pod, Refusal]] = []
        self._version = 0  # of the set; grows with each change
        self._acknowledged = -1  # version that the controller has acted on
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()
        self.connected = False
        self.fault = "not connected yet"  # why there is no stream

    def put(self, pod: Pod) -> None:
        """The pod is captured."""
        if self._pods.get(pod.uid) != pod:
            self._pods[pod.uid] = pod
            self._touch()

    def remove(self, uid: str) -> bool:
        """It is not any more; False when that was never said."""
        if self._pods.pop(uid, None) is None:
            return False
        self._touch()
        return True

    def refuse(self, refused: list[tuple[Pod, Refusal]]) -> None:
        """These pods, and no others, cannot be enrolled or suffer from it: with an API server, authors are told."""
        if self._refused != refused:
            self._refused = refused
            self._touch()

    def acknowledged(self) -> asyncio.Future[None]:
        """Done when the controller has acted on everything that was said until now."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._acknowledged >= self._version:
            future.set_result(None)
        else:
            self._waiting.append((self._version, future))
        return future

    async def run(self) -> None:
        """Report, and again on a new stream, for as long as the task lives."""
        backoff = BACKOFF_FIRST_S
        while True:
            try:
                async with self._open_stream() as stream:
                    await self._converse(stream)
            except StreamOver as over:
                log.info("controller: %s", over)
            except ControllerAway as away:
                if self.connected or self.fault != str(away):
                    log.warning("controller: %s", away)
                self.fault = str(away)
            if self.connected:
                backoff = BACKOFF_FIRST_S
            self.connected = False
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))
            backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _converse(self, stream: ReportStream) -> None:
        sent: dict[int, int] = {}  # version of the set by generation of the report
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._write(stream, sent), name="report write"),
            loop.create_task(self._read(stream, sent), name="report read"),
            loop.create_task(self._watch_credentials(stream), name="report credentials"),
        ]
        # No TaskGroup: gRPC may answer the cancellation of a part with an error, and the group would then raise that in
        # place of our own cancellation, so that the agent went on reporting instead of ending.
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _write(self, stream: ReportStream, sent: dict[int, int]) -> None:
        generation = 0
        while True:
            self._changed.clear()
            generation += 1
            sent[generation] = self._version
            await stream.write(self._report(generation))
            await self._changed.wait()

    async def _read(self, stream: ReportStream, sent: dict[int, int]) -> None:
        while True:
            answer = await stream.read()
            version = sent.get(answer.generation)
            if version is None:
                raise ControllerAway(f"an answer to report {answer.generation}, which was never sent")
            for older in [generation for generation in sent if generation <= answer.generation]:
                del sent[older]
            if not self.connected:
                log.info("controller: %d captured pods reported", len(self._pods))
            self.connected, self.fault = True, ""
            self._settle(version)

    async def _watch_credentials(self, stream: ReportStream) -> None:
        while not stream.is_stale():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(CREDENTIALS_CHECK_S)
        raise StreamOver("credentials were renewed, connecting anew")

    def _report(self, generation: int) -> wire.CaptureReport:
        report = wire.CaptureReport(node=self._node, generation=generation)
        for pod in self._pods.values():
            report.pods.add(namespace=pod.namespace, name=pod.name, uid=pod.uid)
        for pod, refusal in self._refused:
            report.refused.add(
                namespace=pod.namespace, name=pod.name, uid=pod.uid, reason=refusal.kind.value, message=refusal.text
            )
        return report

    def _settle(self, version: int) -> None:
        self._acknowledged = max(self._acknowledged, version)
        for wanted, future in self._waiting:
            if wanted <= version and not future.done():
                future.set_result(None)
        self._waiting = [(wanted, future) for wanted, future in self._waiting if not future.done()]

    def _touch(self) -> None:
        self._version += 1
        self._changed.set()
