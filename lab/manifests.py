"""Kubernetes manifests as a lab takes them: read from files, checked, one fault per thing that is wrong.

A fault costs only the document it stands in: the rest of the file and of the directory is served. Objects of kinds that
the lab does not run itself (policies, gateways) pass through unjudged: the controller reads them and has its own say.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from controller.sources.documents import Loader
from lab.names import is_subdomain

Manifest = dict[str, Any]

SUFFIXES = (".yaml", ".yml", ".json")
CLUSTER_SCOPED = frozenset({"Namespace", "Node", "GatewayClass", "CustomResourceDefinition", "ClusterRole",
                            "ClusterRoleBinding", "PersistentVolume", "StorageClass"})  # fmt: skip
# Kinds whose controllers a cluster would run and a lab does not: said aloud, or a user waits for pods that never come.
NOT_RUN = frozenset({"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob", "Ingress"})

# What a lab or its controller acts on; other kinds are kept, shown and without effect.
ACTED_ON = frozenset({"Namespace", "Node", "ServiceAccount", "ConfigMap", "Service", "EndpointSlice", "Pod",
                      "AuthorizationPolicy", "PeerAuthentication"})  # fmt: skip

_DOCUMENT = re.compile(r"^---(?=\s|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Which object: kind, namespace (empty for cluster-scoped kinds) and name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        path = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {path}"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and where."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def ref_of(manifest: Manifest) -> Ref:
    """Which object a checked manifest describes."""
    metadata = manifest["metadata"]
    return Ref(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


def read(paths: Iterable[Path]) -> tuple[list[Manifest], list[Fault]]:
    """Read files and directories; `-` is not a path here. Raises OSError for one that cannot be read."""
    places: dict[Ref, str] = {}
    found: list[Manifest] = []
    faults: list[Fault] = []
    for path in _files(paths):
        more, wrong = parse(path.read_text(), str(path), places)
        found += more
        faults += wrong
    return found, faults


def parse(text: str, source: str, places: dict[Ref, str] | None = None) -> tuple[list[Manifest], list[Fault]]:
    """Read one text of one or more documents; `source` names it in faults, `places` what other texts hold already.

    An object that is there twice is a slip: the first one counts, as for the controller.
    """
    places = {} if places is None else places
    found: list[Manifest] = []
    faults: list[Fault] = []
    for line, document in _documents(text):
        where = f"{source}:{line}"
        try:
            value = yaml.load(document, Loader=Loader)
        except yaml.YAMLError as error:
            faults.append(Fault(where, f"not YAML: {_one_line(error)}"))
            continue
        for item in _items(value):
            fault = envelope_fault(item)
            if not fault and (ref := ref_of(normalise(item))) in places:
                fault = f"{ref} stands in {places[ref]} already; that one counts"
            if fault:
                faults.append(Fault(where, fault))
            else:
                found.append(normalise(item))
                places[ref_of(found[-1])] = where
    return found, faults


def envelope_fault(item: Any) -> str | None:
    """What keeps a value from being an object at all: kind, apiVersion, a name."""
    if not isinstance(item, dict):
        return f"an object is a mapping, not {type(item).__name__}"
    for field in ("apiVersion", "kind"):
        if not isinstance(item.get(field), str) or not item[field]:
            return f"{field} is missing"
    metadata = item.get("metadata")
    own = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(own, str):
        what = "without metadata.name" if own is None else f"whose metadata.name is {own!r}, not text (quote it)"
        return f"{item['kind']} {what}"
    name, namespace = metadata["name"], metadata.get("namespace") or "default"
    if not is_subdomain(name) or not isinstance(namespace, str) or not is_subdomain(namespace):
        return f"{item['kind']} {namespace}/{name}: a name has lower-case letters, digits, '-' and '.' only"
    for field in ("labels", "annotations"):
        values = metadata.get(field) or {}
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in (*values, *values.values())):
            return f"{item['kind']} {namespace}/{name}: metadata.{field} maps text to text (quote numbers and booleans)"
    return None


def normalise(item: Manifest) -> Manifest:
    """A copy whose metadata has namespace, labels and annotations as the API server would keep them."""
    metadata = dict(item["metadata"])
    if item["kind"] in CLUSTER_SCOPED:
        metadata.pop("namespace", None)
    else:
        metadata["namespace"] = metadata.get("namespace") or "default"
    for field in ("labels", "annotations"):
        metadata[field] = dict(metadata.get(field) or {})
    return {**item, "metadata": metadata}


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                entry
                for entry in path.rglob("*")
                if entry.suffix in SUFFIXES and entry.is_file() and not entry.name.startswith(".")
            )
        else:
            yield path


def _documents(text: str) -> Iterator[tuple[int, str]]:
    """Each document with the line it starts at: split here, so that one bad document costs no other."""
    starts = [0, *(match.end() for match in _DOCUMENT.finditer(text)), len(text) + 3]
    for begin, end in pairwise(starts):
        document = text[begin : end - 3]
        if document.strip():
            blank = len(document) - len(document.lstrip())
            yield text.count("\n", 0, begin + blank) + 1, document


def _items(value: Any) -> Iterator[Any]:
    if value is None:
        return
    if isinstance(value, dict) and str(value.get("kind", "")).endswith("List") and "items" in value:
        yield from value["items"] or ()
    else:
        yield value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
