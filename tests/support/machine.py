"""The machine as something that tests share: programs at the cgroup root see all of it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LOCK = Path("/run/lock/culvert-test.lock")


class _Machine:
    """One lock per process, counted: a fixture of the whole session may hold it while a test asks for it again."""

    def __init__(self) -> None:
        self._users = 0
        self._handle: TextIO | None = None

    def take(self) -> None:
        if self._handle is None:
            handle = LOCK.open("w")
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._handle = handle
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if self._users == 0 and self._handle is not None:
            self._handle.close()
            self._handle = None


_machine = _Machine()


@contextmanager
def alone() -> Iterator[None]:
    """No other run of the tests attaches programs meanwhile."""
    _machine.take()
    try:
        yield
    finally:
        _machine.release()
