"""What an update of the store changed, for those who keep something in step with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Change:
    """What an update changed, by number: objects to put again, and objects that are gone."""

    workloads: frozenset[int] = frozenset()
    services: frozenset[int] = frozenset()
    policies: frozenset[int] = frozenset()
    removed: frozenset[int] = frozenset()
    addresses: Mapping[bytes, int] = field(default_factory=dict)  # who has an address now; 0: nobody
    refused: Mapping[str, str] = field(default_factory=dict)  # resource -> reason

    def __bool__(self) -> bool:
        return bool(self.workloads or self.services or self.policies or self.removed)
