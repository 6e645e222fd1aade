"""What an installation remembers about itself, in the ConfigMap culvert-install: settings, version, objects.

`upgrade` starts from these settings; what was an object of the installation and is none any more is removed.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import yaml

from cli.install.kinds import Document, resource, resource_of
from cli.install.values import Values
from mesh.kube.api import Api
from mesh.kube.documents import labels_of
from mesh.kube.errors import NotFound
from mesh.kube.resources import CONFIG_MAPS

NAME = "culvert-install"
MANAGED_BY = "app.kubernetes.io/managed-by"
LABELS = {"app.kubernetes.io/part-of": "culvert", MANAGED_BY: "culvert"}


class Unreadable(Exception):
    """The record is not one that this version can read; the message says why."""


@dataclass(frozen=True, slots=True)
class Ref:
    """An object by name."""

    api_version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()} {self.namespace + '/' if self.namespace else ''}{self.name}"


def ref_of(document: Document) -> Ref:
    """The name of an object."""
    metadata = document["metadata"]
    namespace = metadata.get("namespace", "") if resource_of(document).is_namespaced else ""
    return Ref(document["apiVersion"], document["kind"], namespace, metadata["name"])


@dataclass(frozen=True, slots=True)
class Record:
    """One installation."""

    version: str
    settings: Values
    objects: tuple[Ref, ...] = field(default=())

    def document(self, namespace: str) -> Document:
        """As it is kept in the cluster."""
        refs = [[ref.api_version, ref.kind, ref.namespace, ref.name] for ref in self.objects]
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": namespace, "labels": LABELS},
            "data": {
                "version": self.version,
                "settings.yaml": yaml.safe_dump(self.settings) if self.settings else "",
                "objects.json": json.dumps(refs),
            },
        }


async def read(api: Api, namespace: str) -> Record | None:
    """The record of a namespace's installation, None if there is none; raises Unreadable, ApiFault."""
    try:
        data: dict[str, Any] = (await api.get(CONFIG_MAPS, NAME, namespace)).get("data") or {}
    except NotFound:
        return None
    try:
        refs = tuple(Ref(*map(str, item)) for item in json.loads(data.get("objects.json", "[]")))
        settings = yaml.safe_load(data.get("settings.yaml", "")) or {}
        if not isinstance(settings, dict):
            raise TypeError("settings.yaml is no mapping")
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise Unreadable(f"ConfigMap {namespace}/{NAME} cannot be read: {error}") from error
    return Record(str(data.get("version", "?")), settings, refs)


async def removed(api: Api, ref: Ref) -> bool:
    """Remove an object if it is ours; False if it is gone already or is somebody else's."""
    kind = resource(ref.api_version, ref.kind)
    try:
        found = await api.get(kind, ref.name, ref.namespace)
        if is_ours(found):
            await api.delete(kind, ref.name, ref.namespace, uid=found["metadata"]["uid"])
            return True
    except NotFound:
        pass
    return False


def manager(document: Document) -> str:
    """Who says to manage an object; empty: nobody."""
    return labels_of(document).get(MANAGED_BY, "")


def is_ours(document: Document) -> bool:
    """Whether `culvert install` made it."""
    return manager(document) == LABELS[MANAGED_BY]
