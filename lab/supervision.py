"""Keeps long-lived programs running, as a DaemonSet's kubelet would: at once the first time, then with backoff."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.backoff import Backoff
from lab.logfiles import last_line
from lab.process import Child, Launch, spawn, status_text

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Supervised:
    """One program that is meant to run as long as the lab does. `prepare` runs before each start."""

    name: str
    order: Launch
    log: Path
    prepare: Callable[[], Awaitable[None]] | None = None
    restarts: int = 0
    last_end: str = ""
    child: Child | None = field(default=None, repr=False)
    stopping: bool = False
    started_at: float = 0.0

    async def run(self) -> None:
        """Start it again and again; cancelling leaves the process to `stop`."""
        backoff = Backoff(time.monotonic)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        while not self.stopping:
            try:
                if self.prepare is not None:
                    await self.prepare()
                backoff.started()
                self.child = spawn(self.order, self.log)
                self.started_at = time.monotonic()
                status = await self.child.wait()
                self.last_end = status_text(status)
            except OSError as error:
                self.last_end = f"cannot be started: {error}"
            if self.stopping:
                return
            self.restarts += 1
            wait_s = backoff.died()
            log.warning("%s: %s; starting it again in %.2f s", self.name, self.last_end, wait_s)
            await asyncio.sleep(wait_s)

    async def stop(self, grace_s: float) -> None:
        """End it and do not start it again."""
        self.stopping = True
        if self.child is not None:
            await self.child.stop(grace_s)

    def signal(self, number: int) -> None:
        """Signal it when it runs."""
        if self.child is not None:
            self.child.signal(number)

    def signal_when_settled(self, number: int, settle_s: float) -> None:
        """Signal it, but not before it has run for a while: until a program has a handler, a signal may end it."""
        wait_s = self.started_at + settle_s - time.monotonic()
        if wait_s <= 0:
            self.signal(number)
        else:
            asyncio.get_running_loop().call_later(wait_s, self.signal, number)

    def trouble(self) -> str:
        """What is known of a program that has ended by itself: how often, how, its last words."""
        if not self.restarts:
            return ""
        times = "once" if self.restarts == 1 else f"{self.restarts} times"
        words = last_line(self.log)
        return f"has ended {times} ({self.last_end}{f'; its last words: {words}' if words else ''})"

    def status(self) -> dict[str, Any]:
        """For `lab status`."""
        running = self.child is not None and self.child.running
        return {
            "state": "running" if running else "stopped",
            "pid": self.child.pid if running and self.child is not None else None,
            "restarts": self.restarts,
            "last_end": self.last_end,
            "log": str(self.log),
        }
