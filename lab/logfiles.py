"""Keeps log files bounded: they lie in memory (/run), and a program may write for ever."""

import asyncio
import os
from pathlib import Path

MAX_BYTES = 8 << 20
KEEP_BYTES = 1 << 20
LOOK_EVERY_S = 2.0


async def keep_bounded(root: Path) -> None:
    """Cut every file below `root` that has grown too long; lasts as long as the lab."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.to_thread(_cut_all, root)


def _cut_all(root: Path) -> None:
    for path in root.rglob("*.log"):
        try:
            if path.stat().st_size > MAX_BYTES:
                cut(path)
        except FileNotFoundError:
            continue


def cut(path: Path) -> None:
    """Keep the end of a file. Writers append, so they go on behind it; what they write meanwhile is lost."""
    with path.open("r+b") as file:
        file.seek(-KEEP_BYTES, os.SEEK_END)
        tail = file.read()
        file.truncate(0)
        file.seek(0)
        file.write(b"[... cut by the lab ...]\n" + tail.partition(b"\n")[2])
