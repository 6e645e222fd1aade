"""One moment for the engine: what a test does meanwhile, the workers find all at once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def _pin(thread: int, cpus: set[int]) -> None:
    with suppress(ProcessLookupError):  # one that was joined is listed a little longer
        os.sched_setaffinity(thread, cpus)


@contextmanager
def one_moment() -> Iterator[None]:
    """While the block runs no other thread of this process does: all share one processor, and this one comes first.

    Needs root. Nothing in the block may wait for another thread.
    """
    cpu = {min(os.sched_getaffinity(0))}
    with ExitStack() as undo:
        for task in Path("/proc/self/task").iterdir():
            thread = int(task.name)
            with suppress(ProcessLookupError):
                undo.callback(_pin, thread, os.sched_getaffinity(thread))
            _pin(thread, cpu)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        undo.callback(os.sched_setscheduler, 0, os.SCHED_OTHER, os.sched_param(0))
        yield
