"""Keeps log files bounded: they lie in memory (/run), and a program may write for ever."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 8 << 20
KEEP_BYTES = 1 << 20
# How much of a log is quoted where a reason is shown.
_LAST_BYTES = 4096
_WORDS_MAX = 300
LOOK_EVERY_S = 1.0
# While somebody writes as fast as it can: what memory moves in this time is what a file may be longer than MAX_BYTES.
LOOK_SOON_S = 0.05


async def keep_bounded(root: Path) -> None:
    """Cut every file below `root` that has grown too long; lasts as long as the lab."""
    while True:
        has_cut = await asyncio.to_thread(_cut_all, root)
        await asyncio.sleep(LOOK_SOON_S if has_cut else LOOK_EVERY_S)


def _cut_all(root: Path) -> bool:
    """Whether there was something to cut."""
    has_cut = False
    for path in root.rglob("*.log"):
        with suppress(FileNotFoundError):
            if path.stat().st_size > MAX_BYTES:
                cut(path)
                has_cut = True
    return has_cut


def cut(path: Path) -> None:
    """Keep the end of a file. Writers append, so they go on behind it; what they write meanwhile is lost."""
    with path.open("r+b") as file:
        file.seek(-KEEP_BYTES, os.SEEK_END)
        # No more than that: who reads to the end of what somebody writes without pause reads until memory is gone.
        tail = file.read(KEEP_BYTES)
        file.truncate(0)
        file.seek(0)
        file.write(b"[... cut by the lab ...]\n" + tail.partition(b"\n")[2])


def last_line(log: Path) -> str:
    """The last line of a log that says something, shortened; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(-min(_LAST_BYTES, log.stat().st_size), os.SEEK_END)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:_WORDS_MAX] for line in reversed(lines) if line.strip()), "")
