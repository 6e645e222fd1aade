"""The recorded cases as objects and as expected messages."""

from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format

from controller.index.captures import Captures
from controller.index.index import Index, Target
from controller.index.objects import Change
from controller.index.parse import key_of, kind_of, parse
from controller.translate.compile import Inputs, Resource, compile_target
from controller.translate.facts import Mesh
from mesh.wire.authorization_pb2 import Authorization
from mesh.wire.discovery_pb2 import DeltaDiscoveryResponse
from mesh.wire.workload_pb2 import Address
from mesh.xds import ADDRESS_TYPE

FOLDER = Path(__file__).parents[2] / "golden" / "recorded"
MESH = Mesh(root_namespace="istio-system", istio_labels=True)


def load(name: str) -> dict[str, Any]:
    case: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return case


def pod_document(pod: dict[str, Any]) -> dict[str, Any]:
    annotations = dict(pod["ann"])
    if pod["captured"]:
        annotations["ambient.istio.io/redirection"] = "enabled"
    metadata = {"name": pod["name"], "namespace": pod["ns"], "labels": pod["labels"], "annotations": annotations}
    if pod["owner"]:
        kind, version, name = pod["owner"]
        metadata["ownerReferences"] = [{"kind": kind, "apiVersion": version, "name": name}]
    # The recorded pods had one named container port, which the case about service ports refers to.
    containers = [{"name": "c", "ports": [{"name": "named", "containerPort": 7171}]}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": pod["node"], "serviceAccountName": pod["sa"], "containers": containers, **pod["extra"]},
        "status": {
            "phase": pod["phase"],
            "podIP": pod["ip"],
            "podIPs": [{"ip": ip} for ip in pod["ips"]],
            "conditions": [{"type": "Ready", "status": "True" if pod["ready"] else "False"}],
        },
    }


def documents(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [*case["objects"], *(pod_document(pod) for pod in case["pods"])]


def changes(texts: list[dict[str, Any]]) -> list[Change]:
    found = []
    for document in texts:
        kind = kind_of(document)
        assert kind is not None, document["kind"]
        found.append(Change(kind, key_of(document, kind), parse(document, kind)))
    return found


def message_of(resource: Resource) -> Address | Authorization:
    """The message inside an encoded resource, read as a node reads it."""
    (wrapped,) = DeltaDiscoveryResponse.FromString(resource.encoded).resources
    message = Address() if resource.type_url == ADDRESS_TYPE else Authorization()
    assert wrapped.resource.Unpack(message)
    assert wrapped.name == resource.name
    return message


def translate(texts: list[dict[str, Any]], mesh: Mesh = MESH) -> dict[str, Address | Authorization]:
    """All resources of some documents, keyed as the recordings are."""
    index = Index(mesh.root_namespace)
    targets: set[Target] = index.apply(changes(texts))
    inputs = Inputs(index, Captures(), mesh)
    compiled = [resource for target in targets for resource in compile_target(target, inputs)]
    return {f"{resource.type_url.rpartition('.')[2]} {resource.name}": message_of(resource) for resource in compiled}


def expected(case: dict[str, Any], base: dict[str, Any] | None = None) -> dict[str, Address | Authorization]:
    """What the recording says is sent: the base's resources, changed and less by the case's."""
    wanted: dict[str, Address | Authorization] = {}
    for source in (base or {}, case):
        for name, value in source.get("changed", {}).items():
            message = Address() if name.startswith("Address ") else Authorization()
            wanted[name] = json_format.ParseDict(value, message)
        for name in source.get("gone", ()):
            del wanted[name]
    return wanted
