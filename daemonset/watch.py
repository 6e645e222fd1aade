"""Waits for changes in a few directories (inotify), armed before the first read so that nothing falls between.

Says only that something has changed, never what: readers are level triggered. Costs a descriptor and no thread.
"""

import asyncio
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_DELETE = 0x8, 0x40, 0x80, 0x200
_EVENTS = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE
_READ_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Watches directories, not what is below them; a context manager. Raises OSError."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
        try:
            for directory in directories:
                _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), _EVENTS), f"watch {directory}")
        except OSError:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    async def changed(self, timeout_s: float) -> bool:
        """Wait until something has changed since the last call; False when nothing has in that time."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._fd, lambda: None if ready.done() else ready.set_result(None))
        try:
            async with asyncio.timeout(timeout_s):
                await ready
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._fd)
        self.drain()
        return True

    def drain(self) -> None:
        """Take what is there as seen."""
        try:
            while os.read(self._fd, _READ_BYTES):
                pass
        except BlockingIOError:
            pass


def _checked(result: int, step: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{step}: {os.strerror(code)}")
    return result
