"""What every source has in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controller.index.objects import Change, Kind

ObjectKey = tuple[Kind, str]

# Objects whose authors are told on the object what becomes of it.
STATUS_KINDS = frozenset({Kind.AUTHORIZATION_POLICY, Kind.PEER_AUTHENTICATION})

# The field of a policy's status where the last version that was understood stands while a malformed one is there.
KEPT = "lastUnderstood"


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


@dataclass(frozen=True, slots=True)
class Written:
    """What stands on an object in the API besides what it asks for; `version` is its resourceVersion.

    `understood` is what is in force instead of an object that is malformed, as a text that only sources can read;
    `kept` is what the object's status says of that.
    """

    api_version: str
    uid: str
    version: str
    generation: int
    conditions: tuple[Mapping[str, Any], ...]
    understood: str = ""
    kept: str = ""


class Sink(Protocol):
    """Takes what a source finds."""

    def apply(self, changes: Sequence[Change]) -> None:
        """Take a batch. The first one is the whole world as it stands."""

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the list of what is malformed now."""

    def look_again(self) -> None:
        """Nothing has changed but what is written on objects (`Written`)."""


class Source(Protocol):
    """Feeds a sink."""

    async def run(self, sink: Sink) -> None:
        """Load, then follow, until cancelled."""

    async def catch_up(self) -> None:
        """Return when what the world holds now has reached the sink."""

    @property
    def written(self) -> Mapping[ObjectKey, Written]:
        """What stands on objects, where the source has such a thing."""
