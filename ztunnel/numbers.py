"""Numbers for objects: what maps, tables and events call a workload, a service or a policy.

Numbers come in rising order and are not given out twice while anybody may still mean the older object by one. After
a restart a workload gets the number back that its address had, so that what the kernel counted stays with its edge.
"""

from collections.abc import Mapping

_LAST = 0xFFFFFFFF


class NoNumberLeft(Exception):
    """All 2^32 - 1 numbers are in use."""


class Numbers:
    """Gives out numbers; `restored` is what addresses were called before a restart."""

    def __init__(self, restored: Mapping[bytes, int] | None = None) -> None:
        self._restored = {ip: number for ip, number in (restored or {}).items() if 0 < number <= _LAST}
        self._used: set[int] = set()
        self._next = max(self._restored.values(), default=0) + 1

    def take(self, addresses: tuple[bytes, ...] = ()) -> int:
        """A number that nothing else has; the one an address had before the restart if it is still free."""
        for ip in addresses:
            number = self._restored.pop(ip, 0)
            if number and number not in self._used:
                self._used.add(number)
                return number
        return self._take_new()

    def give_back(self, number: int) -> None:
        """Nobody means the object by this number any more."""
        self._used.discard(number)

    def _take_new(self) -> int:
        if len(self._used) >= _LAST:
            raise NoNumberLeft
        while self._next > _LAST or self._next in self._used:
            self._next = self._next + 1 if self._next < _LAST else 1
        number = self._next
        self._used.add(number)
        self._next += 1
        return number
