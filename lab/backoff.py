"""How long to wait before something that died is started again."""

from collections.abc import Callable


class Backoff:
    """At once the first time, then doubling up to a bound; a good while of life resets it."""

    def __init__(
        self, clock: Callable[[], float], first_s: float = 0.25, limit_s: float = 15.0, good_s: float = 10.0
    ) -> None:
        self._clock = clock
        self._first_s = first_s
        self._limit_s = limit_s
        self._good_s = good_s
        self._failures = 0
        self._started_s = clock()

    def started(self) -> None:
        """It runs, from now on."""
        self._started_s = self._clock()

    def died(self) -> float:
        """It died: the seconds to wait."""
        if self._clock() - self._started_s >= self._good_s:
            self._failures = 0
        self._failures += 1
        if self._failures == 1:
            return 0.0
        return float(min(self._limit_s, self._first_s * 2 ** min(self._failures - 2, 16)))
