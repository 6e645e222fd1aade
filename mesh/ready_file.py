"""A file that is there while a process is ready, and fresh while it lives.

What a probe looks at where ports cannot tell: on the node's network the old and the new pod of an upgrade share their
ports, and whoever asks by port hears the old one. The file is in the container's own file system. A probe is
`find FILE -newermt '5 seconds ago' | grep -q .`; a process that hangs becomes not ready by that.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

REFRESH_S = 1.0


async def keep(path: Path, is_ready: Callable[[], bool], refresh_s: float = REFRESH_S) -> None:
    """Keep the file for as long as the task lives; it is removed at the end. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            _show(path, is_ready())
            await asyncio.sleep(refresh_s)
    finally:
        _show(path, False)


def _show(path: Path, is_ready: bool) -> None:
    if is_ready:
        path.touch()
    else:
        path.unlink(missing_ok=True)
