"""Capture reports under Istio's control plane: the annotations of the pods are all that it reads.

The agent works as it does with Culvert's controller; what answers a report here is that the pods carry what it says.
So a pod that leaves the mesh keeps its tunnel port until Istio has been told, and a moment longer (`--settle-s`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from daemonset.reports import ReportStream
from mesh.wire import agent_pb2 as wire


class _Annotated:
    """A ReportStream that ends at the pods; only the newest report is of interest."""

    def __init__(self, written: Callable[[], Awaitable[None]]) -> None:
        self._written = written
        self._newest = 0
        self._reported = asyncio.Event()

    async def write(self, report: wire.CaptureReport) -> None:
        self._newest = report.generation
        self._reported.set()

    async def read(self) -> wire.CaptureAck:
        await self._reported.wait()
        self._reported.clear()
        generation = self._newest
        await self._written()
        return wire.CaptureAck(generation=generation)

    def is_stale(self) -> bool:
        return False


class Annotations:
    """Opens such streams; `written` returns once the pods carry what stands for them."""

    def __init__(self, written: Callable[[], Awaitable[None]]) -> None:
        self._written = written

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[ReportStream]:
        """A stream."""
        yield _Annotated(self._written)
