"""Named, owned asyncio tasks.

A bare `asyncio.create_task` may be collected before it ends and hides its failure until then; every task here has a
name and an owner that hears of its end.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any


class TaskEnded(Exception):
    """A background task that runs as long as its owner came to an end of its own."""


class Background:
    """Owns tasks that run as long as it does: one that ends is a fault, and `failed` then raises it.

    Leaving the context cancels all of them and waits until they are gone.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: asyncio.Future[None] | None = None

    async def __aenter__(self) -> "Background":
        self._failure = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is not None and self._failure.done() and not self._failure.cancelled():
            self._failure.exception()  # seen: the owner leaves for another reason

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine that is meant to last."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def run_once(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine that may end; only its failure is a fault."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended_once)
        return task

    async def failed(self) -> None:
        """Wait for the first task that fails or ends, and raise its exception or TaskEnded."""
        assert self._failure is not None, "Background is not entered"
        await asyncio.shield(self._failure)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._fail(task.exception() or TaskEnded(f"task {task.get_name()} ended"))

    def _ended_once(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)
