"""Blocking work beside the event loop.

Every piece of work gets a thread of its own that nobody waits for at exit: an answer that never comes must not keep a
process from ending, as a pool's threads would. How many run at once is the caller's bound.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """Nobody takes any more."""


async def run(work: Callable[[], T], name: str) -> T:
    """Do blocking work; cancelled, the work goes on by itself and its result is dropped."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # T may be None itself

    def body() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=body, name=name, daemon=True).start()
    return await done


class Channel(Generic[T]):
    """Items from a thread to the loop, in order; the thread waits while `limit` of them are not taken yet."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._items: list[T] = []
        self._room = threading.Condition()
        self._event = asyncio.Event()
        self._is_closed = False

    def put(self, items: list[T]) -> None:
        """Hand over (in the thread); raises Closed."""
        with self._room:
            self._room.wait_for(lambda: self._is_closed or len(self._items) < self._limit)
            if self._is_closed:
                raise Closed
            is_first = not self._items
            self._items += items
        if is_first:
            try:
                self._loop.call_soon_threadsafe(self._event.set)
            except RuntimeError as error:
                raise Closed from error

    async def take(self) -> list[T]:
        """Everything that is there, at least one item, or nothing after a `nudge` (on the loop)."""
        await self._event.wait()
        self._event.clear()
        with self._room:
            items, self._items = self._items, []
            self._room.notify()
        return items

    def nudge(self) -> None:
        """Let `take` return (on the loop)."""
        self._event.set()

    def close(self) -> None:
        """Let go of a waiting thread."""
        with self._room:
            self._is_closed = True
            self._room.notify()
