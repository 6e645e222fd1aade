"""A namespace and a pod as an API server gives them."""

from typing import Any

UID = "0f8e1c9a-1111-2222-3333-444455556666"


def namespace(name: str = "shop", **labels: str) -> dict[str, Any]:
    labels = {key.replace("mesh", "culvert.io/mesh"): value for key, value in labels.items()}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pod(name: str = "web", uid: str = UID, phase: str = "Running", ip: str = "10.0.0.5", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", **spec},
        "status": {"phase": phase, "podIPs": [{"ip": ip}] if ip else []},
    }
