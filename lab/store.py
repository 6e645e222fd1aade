"""The objects of a lab, each also as a file below `manifests/`: the directory that the controller watches.

One writer: the supervisor's loop. A file is written when the object has changed, never otherwise.
"""

import copy
from collections.abc import Callable, Iterator

from lab.manifests import Manifest, Ref, ref_of
from lab.paths import LabPaths


class Store:
    """All objects by Ref, mirrored to files. `changed` is called after each change."""

    def __init__(self, paths: LabPaths) -> None:
        self._paths = paths
        self._objects: dict[Ref, Manifest] = {}
        self.changed: Callable[[], None] = lambda: None

    def get(self, ref: Ref) -> Manifest | None:
        """The object, which the caller must not change."""
        return self._objects.get(ref)

    def of_kind(self, kind: str) -> list[Manifest]:
        """All objects of a kind, in the order of their names."""
        return [self._objects[ref] for ref in sorted(self._objects) if ref.kind == kind]

    def in_namespace(self, namespace: str) -> list[Ref]:
        """What a namespace holds."""
        return sorted(ref for ref in self._objects if ref.namespace == namespace)

    def __iter__(self) -> Iterator[Ref]:
        return iter(sorted(self._objects))

    def put(self, manifest: Manifest) -> bool:
        """Keep an object and write its file; False when it was so already."""
        ref = ref_of(manifest)
        if self._objects.get(ref) == manifest:
            return False
        self._objects[ref] = copy.deepcopy(manifest)
        path = self._paths.manifests / ref.kind.lower() / _file_name(ref)
        path.parent.mkdir(exist_ok=True)
        self._paths.write(path, manifest)
        self.changed()
        return True

    def remove(self, ref: Ref) -> None:
        """Forget an object and its file."""
        if self._objects.pop(ref, None) is not None:
            (self._paths.manifests / ref.kind.lower() / _file_name(ref)).unlink(missing_ok=True)
            self.changed()


def _file_name(ref: Ref) -> str:
    return f"{ref.namespace}_{ref.name}.json" if ref.namespace else f"{ref.name}.json"
