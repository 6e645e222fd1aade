"""Blocking work beside the event loop.

Every piece of work has a thread for itself while it lasts, and nobody waits for that at exit: an answer that never
comes must not keep a process from ending, as a pool's threads would. A few threads that are done wait for the next
work, because to start one holds the loop up until it runs. How many run at once is the caller's bound.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """Nobody takes any more."""


MAX_IDLE = 8


class _Worker(threading.Thread):
    """Does what it is handed, one piece after the other, and ends when enough others are idle."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._handed: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def hand(self, body: Callable[[], None], name: str) -> None:
        self.name = name
        self._handed.put(body)

    def run(self) -> None:
        while True:
            self._handed.get()()
            self.name = "kube-idle"
            if len(_idle) >= MAX_IDLE:
                return
            _idle.append(self)


_idle: list[_Worker] = []
os.register_at_fork(after_in_child=_idle.clear)


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

    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
        worker.start()
    worker.hand(body, name)
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
