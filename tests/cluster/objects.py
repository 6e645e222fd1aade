"""Objects as tests make them on a real API server."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mesh.kube import resources
from mesh.kube.api import Api, Document, Selection
from mesh.kube.errors import NotFound
from mesh.kube.resources import Resource

CHART = Path(__file__).parents[2] / "daemonset" / "chart"

RESOURCES = {
    "Namespace": resources.NAMESPACES,
    "Node": resources.NODES,
    "ServiceAccount": resources.SERVICE_ACCOUNTS,
    "Pod": resources.PODS,
    "Service": resources.SERVICES,
    "EndpointSlice": resources.ENDPOINT_SLICES,
    "AuthorizationPolicy": resources.AUTHORIZATION_POLICIES,
    "PeerAuthentication": resources.PEER_AUTHENTICATIONS,
    "CustomResourceDefinition": resources.DEFINITIONS,
}


def definitions() -> list[Document]:
    """The CustomResourceDefinitions that Culvert installs where there are none."""
    return [yaml.safe_load(path.read_text()) for path in sorted((CHART / "crds").glob("*.yaml"))]


async def define(api: Api) -> None:
    """Install them; returns when objects of them can be made."""
    for document in definitions():
        await api.apply(resources.DEFINITIONS, document)
    for resource in (resources.AUTHORIZATION_POLICIES, resources.PEER_AUTHENTICATIONS):
        await until_served(api, resource)


async def undefine(api: Api) -> None:
    """Remove them and all objects of them; returns when they are gone and not only on their way."""
    names = [document["metadata"]["name"] for document in definitions()]
    for name in names:
        await api.delete(resources.DEFINITIONS, name)

    async def are_gone() -> bool:
        page = await api.page(Selection(resources.DEFINITIONS))
        return not {item["metadata"]["name"] for item in page.items} & set(names)

    await until(are_gone, "the definitions are gone")


async def until_served(api: Api, resource: Resource) -> None:
    async def is_served() -> bool:
        try:
            await api.page(Selection(resource), limit=1)
        except NotFound:
            return False
        return True

    await until(is_served, f"{resource} is served")


async def put(api: Api, document: Document) -> Document:
    """Make an object or change it, its status too where that is a part of its own."""
    resource = RESOURCES[document["kind"]]
    metadata = document["metadata"]
    namespace = metadata.get("namespace", "")
    body = {name: value for name, value in document.items() if name != "status"}
    made = await api.apply(resource, body, namespace)
    if "status" in document:
        patch = {"status": document["status"]}
        made = await api.merge_patch(resource, metadata["name"], patch, namespace, "status")
    return made


async def namespace(api: Api, name: str, **labels: str) -> None:
    """A namespace of a test's own."""
    metadata = {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}}
    await put(api, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def pod(name: str, ip: str, ns: str, node: str = "node-a", **metadata: Any) -> Document:
    """A pod that runs and is ready, though no kubelet knows it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": ns, **metadata},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "web",
            "automountServiceAccountToken": False,
            "containers": [{"name": "app", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


async def until(condition: Callable[[], Any], what: str, deadline_s: float = 30.0) -> None:
    """Look until something is so; the condition may be a coroutine function."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {what}"
        await asyncio.sleep(0.02)
