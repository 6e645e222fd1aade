"""The objects of one kind as an API server has them: documents reduced, and merged into changes.

What is malformed becomes a fault on the object, and the object's last good version stays in force. A new list replaces
everything at once: what comes of it are the differences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.index.fields import ObjectFault
from controller.index.objects import NAMESPACED, Change, Kind, Object
from controller.index.parse import key_of, parse
from controller.sources.base import STATUS_KINDS, Fault, Written
from mesh.kube.follow import is_before
from mesh.kube.resources import Resource


@dataclass(frozen=True, slots=True)
class Item:
    """A document reduced. Without an object it is malformed and `fault` says how; without a key, nobody knows which."""

    key: str
    version: str
    object: Object | None
    fault: Fault | None = None
    written: Written | None = None


def reduce(document: Any, kind: Kind, resource: Resource) -> Item:
    """What is needed of a document; runs beside the loop."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    metadata = metadata if isinstance(metadata, dict) else {}
    version = str(metadata.get("resourceVersion", ""))
    place = resource.path(
        str(metadata.get("namespace", "")) if kind in NAMESPACED else "", str(metadata.get("name", ""))
    )
    key = ""
    try:
        key = key_of(document, kind)
        written = _written(document, resource) if kind in STATUS_KINDS else None
        return Item(key, version, parse(document, kind), None, written)
    except ObjectFault as error:
        fault = Fault(place, f"{kind.value} {key}".rstrip(), error.path, error.what)
        written = _written(document, resource) if kind in STATUS_KINDS and key else None
        return Item(key, version, None, fault, written)


class Collected:
    """One kind, merged. Implements the Follower of its collection; `on_changes` hears of what differs."""

    def __init__(self, kind: Kind, on_changes: Callable[[Sequence[Change]], None]) -> None:
        self.kind = kind
        self.is_listed = False
        self.faults: dict[str, Fault] = {}
        self.written: dict[str, Written] = {}
        self._on_changes = on_changes
        self._objects: dict[str, Object] = {}
        self._has_moved = False

    def listed(self, items: Sequence[Item]) -> None:
        """Everything there is."""
        newest = _newest(items)
        gone = self._objects.keys() - newest.keys()
        self.faults = {}
        self.written = {}
        changes = [self._drop(key) for key in gone]
        changes += [change for item in newest.values() if (change := self._put(item)) is not None]
        self.is_listed = True
        self._has_moved = True
        self._on_changes(changes)

    def changed(self, items: Sequence[tuple[bool, Item]]) -> None:
        """Objects as they are now."""
        changes = []
        for is_there, item in items:
            change = self._put(item) if is_there else self._drop(item.key)
            if change is not None:
                changes.append(change)
        self._has_moved = True
        self._on_changes(changes)

    def vanish(self) -> None:
        """The kind itself is not there: neither are its objects."""
        self.listed(())

    def take_moved(self) -> bool:
        """`written` may be another than at the last call."""
        has_moved, self._has_moved = self._has_moved, False
        return has_moved

    def _put(self, item: Item) -> Change | None:
        self.faults.pop(item.key, None)
        if item.fault is not None:
            self.faults[item.key] = item.fault
        if item.written is not None:
            self.written[item.key] = item.written
        if item.object is None or self._objects.get(item.key) == item.object:
            return None
        self._objects[item.key] = item.object
        return Change(self.kind, item.key, item.object)

    def _drop(self, key: str) -> Change:
        self.faults.pop(key, None)
        self.written.pop(key, None)
        self._objects.pop(key, None)
        return Change(self.kind, key, None)


def _newest(items: Sequence[Item]) -> Mapping[str, Item]:
    """By key. A list that was put together over a deletion may have an object twice: the later one counts."""
    found: dict[str, Item] = {}
    for item in items:
        known = found.get(item.key)
        if known is None or not is_before(item.version, known.version):
            found[item.key] = item
    return found


def _written(document: Any, resource: Resource) -> Written:
    metadata = document["metadata"]
    status = document.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    generation = metadata.get("generation")
    return Written(
        api_version=resource.api_version,
        uid=str(metadata.get("uid", "")),
        version=str(metadata.get("resourceVersion", "")),
        generation=generation if isinstance(generation, int) else 0,
        conditions=tuple(one for one in conditions if isinstance(one, dict)) if isinstance(conditions, list) else (),
    )
