"""What every source has in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.index.objects import Change


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was given and cannot be used; what was good before stays in force."""

    place: str  # file and document, or the object's address in the API
    object: str  # "Kind namespace/name", empty if it cannot be told
    field: str
    message: str

    def __str__(self) -> str:
        parts = [self.place, self.object, f"{self.field}: {self.message}" if self.field else self.message]
        return ": ".join(part for part in parts if part)


class Sink(Protocol):
    """Takes what a source finds."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Take a batch. The first one is the whole world as it stands."""

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the list of what is malformed now."""
