"""A file that is there while something holds of a process, and fresh while the process is not stuck.

What a probe looks at where ports cannot tell: on the node's network the old and the new pod of an upgrade share their
ports, and whoever asks by port hears the old one. The file is in the container's own file system. A probe is
`find FILE -newermt '10 seconds ago' | grep -q .`. For readiness: a process that hangs is not ready. For life: a
file that is kept whatever the process waits for, and a patient probe.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

REFRESH_S = 1.0


async def keep(path: Path, holds: Callable[[], bool], refresh_s: float = REFRESH_S) -> None:
    """Keep the file for as long as the task lives; it is removed at the end. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            _show(path, holds())
            await asyncio.sleep(refresh_s)
    finally:
        _show(path, False)


async def keep_alive(path: Path, refresh_s: float = REFRESH_S) -> None:
    """Keep a file that says no more than that the loop of this process runs. Raises OSError."""
    await keep(path, lambda: True, refresh_s)


def _show(path: Path, holds: bool) -> None:
    if holds:
        path.touch()
    else:
        path.unlink(missing_ok=True)
