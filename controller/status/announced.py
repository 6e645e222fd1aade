"""Whether what the source holds now has reached every node: what somebody asks who has just changed an object.

An answer is the end of a chain: the source was read after the question, its changes are translated, and every connected
node has acknowledged both types of resources up to there. It waits for that a bounded time and else says what is
missing. Looks only: a question makes the source be read sooner than it would have been, and nothing else.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from controller.index.objects import Kind, Namespace, Pod
from controller.serve.ads import Stream
from controller.serve.hub import Hub
from controller.status.report import StatusReport
from controller.translate.compile import Inputs
from mesh.enrolment import asked_by
from mesh.xds import ROOTS_TYPE

# Longer than a healthy node needs, shorter than the time that a request may take (mesh.http).
LONGEST_WAIT_S = 4.0

ReadSource = Callable[[], Awaitable[None]]


class Announced:
    """Answers the question; owns nothing."""

    def __init__(self, inputs: Inputs, hub: Hub, status: StatusReport, read_source: ReadSource) -> None:
        self._status = status
        self._inputs = inputs
        self._hub = hub
        self._read_source = read_source

    async def view(self, wait_s: float) -> dict[str, Any]:
        """The answer, as plain values, after at most so many seconds."""
        deadline = time.monotonic() + min(wait_s, LONGEST_WAIT_S)
        is_read = await _within(deadline, self._read_source())
        revisions = {
            type_url: resources.revision for type_url, resources in self._hub.sets.items() if type_url != ROOTS_TYPE
        }
        await _within(deadline, self._until_taken(revisions))
        return {
            "source_read": is_read,
            "nodes": self._nodes(revisions),
            "pods": list(map(self._pod, self._pods())),
            "refused": self._status.refused(),
        }

    async def _until_taken(self, revisions: dict[str, int]) -> None:
        while not all(self._nodes(revisions).values()):
            await self._hub.progress()

    def _nodes(self, revisions: dict[str, int]) -> dict[str, bool]:
        """Connected nodes, each with whether all its streams have acknowledged these revisions."""
        taken: defaultdict[str, bool] = defaultdict(lambda: True)
        for stream in self._hub.streams:
            if isinstance(stream, Stream) and stream.caller.is_node:
                node = stream.caller.node
                taken[node] = taken[node] and all(stream.has_taken(*item) for item in revisions.items())
        return dict(sorted(taken.items()))

    def _pods(self) -> list[Pod]:
        found = [item for item in self._inputs.index.all(Kind.POD) if isinstance(item, Pod)]
        return sorted((pod for pod in found if not pod.is_terminal), key=lambda pod: pod.key)

    def _pod(self, pod: Pod) -> dict[str, Any]:
        space = self._inputs.index.get(Kind.NAMESPACE, pod.namespace)
        labels = space.labels if isinstance(space, Namespace) else {}
        return {
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.uid,
            "node": pod.node,
            "asked": asked_by(pod.labels, labels, istio_labels=self._inputs.mesh.istio_labels).enrol,
            "captured": self._inputs.captures.is_captured(pod),
            "ready": pod.is_ready and not pod.is_terminating,
        }


async def _within(deadline: float, doing: Awaitable[None]) -> bool:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            await doing
    except TimeoutError:
        return False
    return True
