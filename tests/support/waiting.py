"""Looking again until something is so: for what no event of the test's own tells."""

import asyncio
import time
from collections.abc import Callable
from typing import Any


def eventually(read: Callable[[], Any], within_s: float = 5.0) -> Any:
    """The first truthy value of `read`; fails with the last one when time is over."""
    deadline = time.monotonic() + within_s
    while not (value := read()):
        assert time.monotonic() < deadline, f"still {value!r} after {within_s} s"
        time.sleep(0.05)
    return value


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """The same between turns of the loop."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)
