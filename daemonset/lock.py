"""One agent per runtime directory: a lock file that names its holder."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_NAME = "agent.lock"


class AnotherAgent(Exception):
    """Somebody else works on this runtime directory."""


@asynccontextmanager
async def only_agent(runtime: Path, patience_s: float | None) -> AsyncIterator[None]:
    """Hold the lock; None waits for ever. Raises AnotherAgent when it does not come free. The file stays."""
    fd = os.open(runtime / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        async with asyncio.timeout(patience_s):
            while not _try_lock(fd):  # noqa: ASYNC110 - flock has no event
                await asyncio.sleep(0.1)
    except TimeoutError:
        holder = _holder(fd)
        os.close(fd)
        raise AnotherAgent(f"an agent (pid {holder}) already works on {runtime}") from None
    except BaseException:
        os.close(fd)
        raise
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def running_agent(runtime: Path) -> str:
    """The pid of the agent that holds the lock, as text; empty when there is none."""
    try:
        fd = os.open(runtime / _NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return "" if _try_lock(fd) else _holder(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
