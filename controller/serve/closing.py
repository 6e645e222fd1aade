"""Long streams at shutdown: they end at once and say so, while short calls may finish.

A node that hears UNAVAILABLE goes to another controller, or keeps what it has until this one is back.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SENTENCE = "the controller is shutting down"


class Closing:
    """Set once, by the process that goes down."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def is_set(self) -> bool:
        """The controller goes down."""
        return self._event.is_set()

    def set(self) -> None:
        """End all streams."""
        self._event.set()

    async def run_until(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do the work; None if it was cut short by the shutdown."""
        async with asyncio.TaskGroup() as group:
            working = group.create_task(work, name="stream-work")
            waiting = group.create_task(self._event.wait(), name="stream-closing")
            await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            waiting.cancel()
        return None if working.cancelled() else working.result()
