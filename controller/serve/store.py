"""The resources as they are served: encoded once, kept in the order of their last change.

A stream needs no copy of what it was sent. Every change of a resource, also its removal, gets the next *revision* of
its type, and a stream that has been brought up to a revision needs what stands behind it in the change order, in its
latest form. A slow stream so skips what was overtaken, and costs one number. The store's single writer is the
pipeline; streams read. Streams that keep up all stand at the same revision, so what they need next is put together
once for all of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from controller.translate.compile import Resource

# What is put together for all streams at a revision is kept while it is small: as many revisions may be asked for as
# there are streams that do not keep up, and what they need is large.
SHARED_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Batch:
    """The content of one response: encoded resources joined, their names and versions, and names that are gone."""

    encoded: bytes = b""
    sent: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sent or self.removed)


class ResourceSet:
    """The resources of one type."""

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.revision = 0
        self._by_name: dict[str, Resource] = {}
        self._by_tag: dict[str, set[str]] = {}
        # Name -> revision of its last change, oldest first; a name that is not in _by_name was removed.
        self._changed: dict[str, int] = {}
        self._removed: dict[str, int] = {}  # those of _changed that were removed, in the same order
        self._since: dict[int, Batch | None] = {}  # as of `revision`

    def __len__(self) -> int:
        return len(self._by_name)

    def put(self, resource: Resource) -> bool:
        """Take a resource; False if it is the same as before."""
        before = self._by_name.get(resource.name)
        if before is not None and before.version == resource.version and before.tags == resource.tags:
            return False
        self._untag(before)
        self._by_name[resource.name] = resource
        for tag in resource.tags:
            self._by_tag.setdefault(tag, set()).add(resource.name)
        self._mark(resource.name)
        return True

    def remove(self, name: str) -> bool:
        """Drop a resource; False if there is none of that name."""
        before = self._by_name.pop(name, None)
        if before is None:
            return False
        self._untag(before)
        self._mark(name)
        return True

    def get(self, name: str) -> Resource | None:
        """The resource of a name."""
        return self._by_name.get(name)

    def find(self, name: str) -> set[str]:
        """The names of the resources that a name or tag stands for."""
        own = {name} if name in self._by_name else set()
        return own | self._by_tag.get(name, set())

    def names(self) -> Iterable[str]:
        """All names."""
        return self._by_name.keys()

    def resources(self) -> Iterable[Resource]:
        """All resources."""
        return self._by_name.values()

    def changed_since(self, revision: int) -> list[str]:
        """The names that changed or vanished after a revision, in the order of their last change."""
        behind = takewhile(lambda entry: entry[1] > revision, reversed(self._changed.items()))
        return [name for name, _ in behind][::-1]

    def since(self, revision: int) -> Batch | None:
        """All that changed or vanished after a revision, the same object for all who ask; None if it is too large."""
        if revision not in self._since:
            batch, left = self.gather(self.changed_since(revision), SHARED_BYTES)
            is_small = not left and len(batch.encoded) <= SHARED_BYTES
            self._since[revision] = batch if is_small else None
        return self._since[revision]

    def gather(self, names: Sequence[str], most_bytes: int, *, removals: bool = True) -> tuple[Batch, list[str]]:
        """The content of a response about names, and the names that have to wait.

        A resource that is larger than `most_bytes` by itself goes alone; without `removals` names that are gone wait.
        """
        found: list[Resource] = []
        removed: list[str] = []
        waiting: list[str] = []
        size = 0
        for position, name in enumerate(names):
            resource = self._by_name.get(name)
            if resource is None:
                (removed if removals else waiting).append(name)
                continue
            if found and size + len(resource.encoded) > most_bytes:
                waiting += names[position:]
                break
            size += len(resource.encoded)
            found.append(resource)
        encoded = b"".join(resource.encoded for resource in found)
        batch = Batch(encoded, tuple((resource.name, resource.version) for resource in found), tuple(removed))
        return batch, waiting

    def forget_removed(self, revision: int) -> None:
        """Let go of removals that every stream has seen."""
        for name in list(takewhile(lambda name: self._removed[name] <= revision, self._removed)):
            del self._changed[name], self._removed[name]
            self._since.clear()

    def _mark(self, name: str) -> None:
        self.revision += 1
        self._since.clear()
        self._changed.pop(name, None)
        self._removed.pop(name, None)
        self._changed[name] = self.revision
        if name not in self._by_name:
            self._removed[name] = self.revision

    def _untag(self, resource: Resource | None) -> None:
        for tag in resource.tags if resource else ():
            names = self._by_tag[tag]
            names.discard(resource.name if resource else "")
            if not names:
                del self._by_tag[tag]
