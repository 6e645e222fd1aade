"""Closes the way past an absent ztunnel once it has been away for a while.

A pod that is PERMISSIVE and that no policy guards may be reached while no ztunnel runs: its bit in the map `fallback`
says so. ztunnel writes the bits at each change of a policy, so while it is away they say what was true when it left. A
policy that arrives meanwhile would not be heeded until it is back. So the bits are for the moments of a restart only:
after `after_s` without a ztunnel all are cleared, and a ztunnel that comes back sets them anew with its pods.
"""

import asyncio
import logging
from typing import Protocol

from daemonset.enrolment import Clock, KernelFault

log = logging.getLogger(__name__)

# A map that cannot be written is tried again at this pace, for as long as it takes: open is the wrong way to fail.
RETRY_S = 1.0


class Bits(Protocol):
    """The kernel's map."""

    def close_fallbacks(self) -> int:
        """Clear every bit; how many were set. Raises KernelFault."""


class Presence(Protocol):
    """The ztunnels."""

    def until(self, *, present: bool) -> asyncio.Future[None]:
        """Done when there is one, or with False when there is none."""


class FallbackGuard:
    """Clears the bits when no ztunnel has been there for `after_s` seconds; at the agent's start that time begins."""

    def __init__(self, bits: Bits, ztunnels: Presence, clock: Clock, after_s: float) -> None:
        self._bits = bits
        self._ztunnels = ztunnels
        self._clock = clock
        self._after_s = after_s

    async def run(self) -> None:
        """Guard for as long as the task lives."""
        while True:
            await self._ztunnels.until(present=False)
            back = self._ztunnels.until(present=True)
            await self._first(back, self._clock.after(self._after_s))
            while not back.done() and not self._close():
                await self._first(back, self._clock.after(RETRY_S))
            await back

    @staticmethod
    async def _first(back: asyncio.Future[None], timer: asyncio.Future[None]) -> None:
        await asyncio.wait({back, timer}, return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()

    def _close(self) -> bool:
        try:
            closed = self._bits.close_fallbacks()
        except KernelFault as fault:
            log.error("pods may still be reached past the absent ztunnel: %s", fault)
            return False
        if closed:
            log.warning(
                "no ztunnel for %g s: %d pods refuse plain connections until one is back", self._after_s, closed
            )
        return True
