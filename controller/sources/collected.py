"""The objects of one kind as an API server has them: documents reduced, and merged into changes.

What is malformed becomes a fault on the object, and the object's last good version stays in force. A policy's stands in
its status meanwhile (written by the controller that leads), so that a controller that starts then knows it too. A new
list replaces everything at once: what comes of it are the differences. That a policy was deleted and another made under
its name, both unseen, its uid tells: nothing of the first one stays.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.index.fields import ObjectFault
from controller.index.objects import NAMESPACED, Change, Kind, Object
from controller.index.parse import key_of, parse
from controller.index.parse_policies import DRY_RUN
from controller.sources.base import KEPT, STATUS_KINDS, Fault, Written
from mesh.kube.documents import annotations_of
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
    understood: str = ""  # of a policy: what can be kept of this version, or what its status has kept of an earlier one
    last_good: Object | None = None  # of a malformed policy: what its status has kept


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
        parsed = parse(document, kind)
        if kind not in STATUS_KINDS:
            return Item(key, version, parsed)
        return Item(key, version, parsed, None, _written(document, resource), _keep(document))
    except ObjectFault as error:
        fault = Fault(place, f"{kind.value} {key}".rstrip(), error.path, error.what)
        if kind not in STATUS_KINDS or not key:
            return Item(key, version, None, fault)
        written = _written(document, resource)
        return Item(key, version, None, fault, written, written.kept, _last_good(document, kind, written.kept))


class Collected:
    """One kind, merged. Implements the Follower of its collection; `on_changes` hears of what differs."""

    def __init__(self, kind: Kind, on_changes: Callable[[Sequence[Change]], None]) -> None:
        self.kind = kind
        self.is_listed = False
        self.faults: dict[str, Fault] = {}
        self.written: dict[str, Written] = {}
        self._on_changes = on_changes
        self._objects: dict[str, Object] = {}
        self._understood: dict[str, str] = {}
        self._uids: dict[str, str] = {}  # of policies
        self._has_moved = False

    def listed(self, items: Sequence[Item]) -> None:
        """Everything there is."""
        newest = _newest(items)
        gone = (self._objects.keys() | self._uids.keys()) - newest.keys()
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
        if item.written is None or self._uids.get(item.key, item.written.uid) == item.written.uid:
            return self._merge(item)
        removal = self._drop(item.key)
        return self._merge(item) or removal

    def _merge(self, item: Item) -> Change | None:
        self.faults.pop(item.key, None)
        if item.fault is not None:
            self.faults[item.key] = item.fault
        found = item.object
        if found is None and item.key not in self._objects:
            found = item.last_good
        if found is not None and item.understood:
            self._understood[item.key] = item.understood
        if item.written is not None:
            understood = "" if item.fault is None else self._understood.get(item.key, "")
            self._uids[item.key] = item.written.uid
            self.written[item.key] = dataclasses.replace(item.written, understood=understood)
        if found is None or self._objects.get(item.key) == found:
            return None
        self._objects[item.key] = found
        return Change(self.kind, item.key, found)

    def _drop(self, key: str) -> Change:
        self.faults.pop(key, None)
        self.written.pop(key, None)
        self._objects.pop(key, None)
        self._understood.pop(key, None)
        self._uids.pop(key, None)
        return Change(self.kind, key, None)


def _newest(items: Sequence[Item]) -> Mapping[str, Item]:
    """By key. A list that was put together over a deletion may have an object twice: the later one counts."""
    found: dict[str, Item] = {}
    for item in items:
        known = found.get(item.key)
        if known is None or not is_before(item.version, known.version):
            found[item.key] = item
    return found


def _keep(document: Any) -> str:
    """What makes a policy, as one text: merging patches would mix the fields of two versions."""
    annotations = annotations_of(document)
    kept = {"spec": document.get("spec"), DRY_RUN: annotations.get(DRY_RUN)}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))


def _last_good(document: Any, kind: Kind, kept: str) -> Object | None:
    """The policy of `_keep`'s text, None if there is none."""
    try:
        values = json.loads(kept)
        annotations = {DRY_RUN: values[DRY_RUN]} if values[DRY_RUN] is not None else {}
        metadata = {**document["metadata"], "annotations": annotations}
        return parse({**document, "metadata": metadata, "spec": values["spec"]}, kind)
    except (ValueError, TypeError, KeyError, ObjectFault):
        return None


def _written(document: Any, resource: Resource) -> Written:
    metadata = document["metadata"]
    status = document.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    kept = status.get(KEPT) if isinstance(status, dict) else None
    generation = metadata.get("generation")
    return Written(
        api_version=resource.api_version,
        uid=str(metadata.get("uid", "")),
        version=str(metadata.get("resourceVersion", "")),
        generation=generation if isinstance(generation, int) else 0,
        conditions=tuple(one for one in conditions if isinstance(one, dict)) if isinstance(conditions, list) else (),
        kept=kept if isinstance(kept, str) else "",
    )
