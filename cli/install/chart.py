"""The chart that this package carries, rendered without Helm. Nothing here talks to a cluster."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from cli.install.template import Template
from cli.install.values import Values, merged
from mesh.kube.documents import annotations_of

Document = dict[str, Any]

NAMESPACE = "culvert-system"
MANAGER = "culvert"


@dataclass(frozen=True, slots=True)
class Release:
    """What Helm calls a release: where it goes and who manages it."""

    namespace: str = NAMESPACE
    name: str = "culvert"
    service: str = MANAGER


class Chart:
    """Templates, definitions and default settings."""

    def __init__(self, folder: Path | None = None) -> None:
        # An installed package is a directory too: C sources are read from it.
        self.folder = folder or Path(str(resources.files("daemonset"))) / "chart"

    @cached_property
    def about(self) -> Document:
        """Chart.yaml."""
        return _read(self.folder / "Chart.yaml")

    @cached_property
    def defaults(self) -> Values:
        """values.yaml."""
        return _read(self.folder / "values.yaml")

    @property
    def version(self) -> str:
        """Of Culvert."""
        return str(self.about["appVersion"])

    def values(self, files: Iterable[Path] = (), assignments: Iterable[str] = ()) -> Values:
        """Settings of an installation; raises BadValues."""
        return merged(self.defaults, files, assignments)

    def definitions(self) -> list[Document]:
        """The kinds that policies are of; installed where the cluster has none."""
        return [one for path in sorted((self.folder / "crds").glob("*.yaml")) for one in _documents(path.read_text())]

    def objects(self, values: Mapping[str, Any], release: Release | None = None) -> list[Document]:
        """Everything else, in an order in which it can be applied; raises TemplateFault."""
        return [one for one in self._rendered(values, release) if not _is_hook(one)]

    def hooks(self, values: Mapping[str, Any], release: Release | None = None) -> list[Document]:
        """What Helm makes for a moment at an event, and nobody else may apply; raises TemplateFault."""
        return [one for one in self._rendered(values, release) if _is_hook(one)]

    def _rendered(self, values: Mapping[str, Any], release: Release | None) -> list[Document]:
        release = release or Release()
        dot = {
            "Values": values,
            "Release": {"Name": release.name, "Namespace": release.namespace, "Service": release.service},
            "Chart": {"Name": self.about["name"], "Version": self.about["version"], "AppVersion": self.version},
        }
        files = sorted((self.folder / "templates").iterdir())
        template = Template({path.name: path.read_text() for path in files})
        found = [one for path in files if path.suffix == ".yaml" for one in _documents(template.render(path.name, dot))]
        return sorted(found, key=_rank)


# What others refer to comes first.
_ORDER = (
    "Namespace",
    "ResourceQuota",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "NetworkPolicy",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
    "DaemonSet",
)


def _is_hook(document: Document) -> bool:
    return "helm.sh/hook" in annotations_of(document)


def _rank(document: Document) -> int:
    return _ORDER.index(document["kind"]) if document["kind"] in _ORDER else len(_ORDER)


def _documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def _read(path: Path) -> Document:
    document = yaml.safe_load(path.read_text())
    assert isinstance(document, dict), f"{path} is no mapping"
    return document
