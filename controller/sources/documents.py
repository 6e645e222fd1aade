"""The text of one manifest file to objects, each document on its own: a broken one takes no other with it."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from controller.index.fields import ObjectFault
from controller.index.objects import Object
from controller.index.parse import check_version, key_of, kind_of, parse
from controller.sources.base import Fault, ObjectKey

# At column 0 these end a YAML document wherever they stand (YAML 1.2, 9.1.2).
_BOUNDARY = re.compile(r"^(?:---(?=\s|$)|\.\.\.\s*$)", re.MULTILINE)
_MERGE = "tag:yaml.org,2002:merge"
_BLANK = re.compile(r"(?:\s*(?:#.*|%.*)?\n)*\s*(?:#.*|%.*)?")


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: times stay text, and of a key that stands twice nobody knows which one is meant."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._looked_at: set[int] = set()  # what merges bring into a mapping later overrides nothing

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve a mapping's merges; raises ConstructorError for a key that stands twice in it."""
        if id(node) not in self._looked_at:
            self._looked_at.add(id(node))
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := _first_twice([key.value for key in keys if key.tag != _MERGE]):
                mark = next(key.start_mark for key in reversed(keys) if key.value == twice)
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", mark)
        super().flatten_mapping(node)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in Loader.yaml_implicit_resolvers.items()
}


def _first_twice(keys: Sequence[str]) -> str:
    if len(set(keys)) == len(keys):
        return ""
    return next(key for at, key in enumerate(keys) if key in keys[:at])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, to the same rule."""
    if twice := _first_twice([key for key, _ in pairs]):
        raise ValueError(f"the key {twice!r} stands twice")
    return dict(pairs)


@dataclass(slots=True)
class Manifest:
    """What a file says."""

    objects: dict[ObjectKey, Object] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    places: dict[ObjectKey, str] = field(default_factory=dict)  # file and document of each object
    unknown_kinds: dict[str, str] = field(default_factory=dict)  # "apiVersion kind" by file and document
    broken: set[ObjectKey] = field(default_factory=set)  # objects that are there but malformed
    has_unnamed_faults: bool = False  # something is broken and it cannot be told which object it is


def read_manifest(text: str, name: str) -> Manifest:
    """Read all documents of a file; `name` stands in the faults."""
    manifest = Manifest()
    for place, document in _documents(text, name, manifest):
        for where, item in _items(document, place):
            _take(item, where, manifest)
    return manifest


def keep_last_good(manifest: Manifest, before: Manifest) -> None:
    """Objects of the file's former version stay in force where the new one is broken."""
    for key, item in before.objects.items():
        if key not in manifest.objects and (manifest.has_unnamed_faults or key in manifest.broken):
            manifest.objects[key] = item


def _documents(text: str, name: str, manifest: Manifest) -> Iterator[tuple[str, Any]]:
    if name.endswith(".json"):
        pieces = [(text, 1)]
    else:
        starts = [0, *(match.end() for match in _BOUNDARY.finditer(text))]
        ends = [*(match.start() for match in _BOUNDARY.finditer(text)), len(text)]
        pieces = [(text[start:end], text.count("\n", 0, start) + 1) for start, end in zip(starts, ends, strict=True)]
    for piece, line in pieces:
        place = name if len(pieces) == 1 else f"{name}:{line}"
        if _BLANK.fullmatch(piece):
            continue
        try:
            if name.endswith(".json"):
                yield place, json.loads(piece, object_pairs_hook=_unique)
            else:
                yield place, yaml.load(piece, Loader=Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            _report_unnamed(manifest, place, " ".join(str(error).split()))


def _items(document: Any, place: str) -> Iterator[tuple[str, Any]]:
    """A `List` stands for its items."""
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        for position, item in enumerate(document["items"]):
            yield f"{place} items[{position}]", item
    elif document is not None:
        yield place, document


def _take(document: Any, place: str, manifest: Manifest) -> None:
    try:
        kind = kind_of(document)
        if kind is None:
            manifest.unknown_kinds[place] = f"{document['apiVersion']} {document['kind']}"
            return
        key = kind, key_of(document, kind)
    except ObjectFault as error:
        _report_unnamed(manifest, place, error.what, error.path)
        return
    name = f"{kind.value} {key[1]}"
    try:
        check_version(document, kind)
        parsed = parse(document, kind)
    except ObjectFault as error:
        manifest.broken.add(key)
        manifest.faults.append(Fault(place, name, error.path, error.what))
        return
    if key in manifest.objects:
        manifest.faults.append(Fault(place, name, "", "stands earlier in this file; that one counts"))
        return
    manifest.objects[key] = parsed
    manifest.places[key] = place


def _report_unnamed(manifest: Manifest, place: str, what: str, path: str = "") -> None:
    manifest.has_unnamed_faults = True
    manifest.faults.append(Fault(place, "", path, what))
