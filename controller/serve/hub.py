"""Who is connected, and telling them that something changed.

Changes are gathered for a moment before the streams are woken, so that a burst (a rollout, a relist) is a few responses
instead of one per object. What a response costs hardly depends on what is in it, so under steady change wakings keep a
distance that grows with the number of streams: the same changes then go out in fewer, fuller responses. The first
change after a silence does not wait for that. The hub owns the set of streams; it never touches their content.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from controller.serve.store import ResourceSet

# A change waits this long for company; far below what a person or a rollout notices.
GATHER_S = 0.010

# Distance of wakings for each open stream: a waking is two responses of 0.12 ms each with their answers, so that steady
# change leaves the loop half of its time. A bound, because a change must not wait for long in the largest of clusters.
SPACING_S, LONGEST_SPACING_S = 0.0005, 0.200


class Listener(Protocol):
    """A stream as the hub sees it."""

    def wake(self) -> None:
        """Look for something to send."""

    def has_accepted(self, type_url: str, revision: int) -> bool:
        """As `has_settled`, and it refused nothing of the last answered response."""

    def has_settled(self, type_url: str, revision: int) -> bool:
        """The node has answered everything of the type up to the revision."""

    def cursor(self, type_url: str) -> int:
        """The revision that the stream has taken notice of."""


class Hub:
    """Streams and their waking."""

    def __init__(self, sets: Iterable[ResourceSet], gather_s: float = GATHER_S) -> None:
        self.sets = {resources.type_url: resources for resources in sets}
        self._gather_s = gather_s
        self._streams: set[Listener] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = 0.0  # no waking before this time of the loop
        self._awaiting_progress: set[asyncio.Future[None]] = set()
        self.on_count: Callable[[int], None] = lambda count: None

    @property
    def streams(self) -> frozenset[Listener]:
        """The streams that are open."""
        return frozenset(self._streams)

    def join(self, stream: Listener) -> None:
        """Add an open stream."""
        self._streams.add(stream)
        self.on_count(len(self._streams))

    def leave(self, stream: Listener) -> None:
        """Drop a stream that closed."""
        self._streams.discard(stream)
        self.on_count(len(self._streams))
        self.note_progress()

    def changed(self) -> None:
        """Resources changed: wake the streams soon."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time() + self._gather_s, self._next_s), self._wake)

    def note_progress(self) -> None:
        """A stream answered or closed."""
        for one in self._awaiting_progress:
            if not one.done():
                one.set_result(None)

    async def progress(self) -> None:
        """Wait until a stream has answered or closed."""
        one = asyncio.get_running_loop().create_future()
        self._awaiting_progress.add(one)
        try:
            await one
        finally:
            self._awaiting_progress.discard(one)

    async def wait_settled(self, type_url: str, revision: int, timeout_s: float) -> bool:
        """Wait until every stream that is open now has answered up to a revision; False if some did not in time."""
        waiting = set(self._streams)
        try:
            async with asyncio.timeout(timeout_s):
                while waiting := {one for one in waiting & self._streams if not one.has_settled(type_url, revision)}:
                    await self.progress()
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        self._timer = None
        spacing_s = min(SPACING_S * len(self._streams), LONGEST_SPACING_S)
        self._next_s = asyncio.get_running_loop().time() + spacing_s
        for stream in self._streams:
            stream.wake()
        for type_url, resources in self.sets.items():
            seen = [stream.cursor(type_url) for stream in self._streams]
            resources.forget_removed(min(seen, default=resources.revision))
