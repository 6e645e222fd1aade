"""How long to wait before the next try: longer each time, never twice the same."""

from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class Backoff:
    """Doubles from `shortest_s` to `longest_s`, each wait cut by chance by up to a half.

    Many clients of one server that went away must not come back in one moment.
    """

    shortest_s: float = 0.2
    longest_s: float = 10.0
    random: Random = field(default_factory=Random)
    _next_s: float = 0.0

    def next_s(self, asked_s: float | None = None) -> float:
        """The next wait in seconds; never shorter than what the server asked for."""
        self._next_s = min(max(2 * self._next_s, self.shortest_s), self.longest_s)
        chosen = self._next_s * self.random.uniform(0.5, 1.0)
        return max(chosen, asked_s or 0.0)

    def reset(self) -> None:
        """A try was good: begin from the shortest wait."""
        self._next_s = 0.0
