"""Long streams and their end: at shutdown at once, saying so, while short calls may finish; and after a while anyway.

A node that hears UNAVAILABLE goes to another controller, or keeps what it has until this one is back. A stream that
has had its time ends with OK; its node opens another, which costs only what changed, and proves anew who it is.
"""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SENTENCE = "the controller is shutting down"


class Closing:
    """Set once, by the process that goes down."""

    def __init__(self, stream_life_s: float = 0) -> None:
        self._event = asyncio.Event()
        self._stream_life_s = stream_life_s

    @property
    def is_set(self) -> bool:
        """The controller goes down."""
        return self._event.is_set()

    def set(self) -> None:
        """End all streams."""
        self._event.set()

    def stream_life_s(self) -> float | None:
        """How long a stream may last before its caller has to show again who it is; None: for ever.

        Spread by a tenth, so that nodes that came together do not leave together.
        """
        return self._stream_life_s * random.uniform(0.9, 1.1) or None

    async def run_until(self, work: Coroutine[Any, Any, T], longest_s: float | None = None) -> T | None:
        """Do the work; None if it was cut short by the shutdown, or because it had its time."""
        async with asyncio.TaskGroup() as group:
            working = group.create_task(work, name="stream-work")
            waiting = group.create_task(self._event.wait(), name="stream-closing")
            await asyncio.wait({working, waiting}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            waiting.cancel()
        return None if working.cancelled() else working.result()
