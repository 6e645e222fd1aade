"""Requests by meaning, awaitable. Documents are mappings as JSON has them; every fault is an ApiFault."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mesh.kube import threads
from mesh.kube.resources import Resource
from mesh.kube.transport import JSON, Call, Transport, connect

T = TypeVar("T")

Document = dict[str, Any]

# What runs at once besides watches; the rest waits its turn here and not at the API server.
MAX_REQUESTS = 16
PAGE_SIZE = 500
_PAGE_TIMEOUT_S = 60.0

_MERGE_PATCH = "application/merge-patch+json"
_APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML
# Only names, labels, annotations and the like come back.
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a collection, and how much of each."""

    resource: Resource
    namespace: str = ""
    field_selector: str = ""
    label_selector: str = ""
    metadata_only: bool = False

    @property
    def path(self) -> str:
        """The collection's path."""
        return self.resource.path(self.namespace)

    def query(self, **more: str | int) -> dict[str, str | int]:
        """The query of a list or watch, without what is empty."""
        selectors = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: value for name, value in {**selectors, **more}.items() if value != ""}


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list; `rest` asks for the next one, empty at the end."""

    items: list[Any]
    version: str
    rest: str


class Api:
    """One API server."""

    def __init__(self, transport: Transport, field_manager: str = "culvert-controller") -> None:
        self.transport = transport
        self._field_manager = field_manager
        self._turns = asyncio.Semaphore(MAX_REQUESTS)

    @classmethod
    def connect(cls, kubeconfig: Path | None = None) -> "Api":
        """The API server of a kubeconfig or of the pod's own cluster; raises Misconfigured. Asks nothing yet."""
        return cls(connect(kubeconfig))

    async def request(self, call: Call, decode: Callable[[Any], T]) -> T:
        """Any request; `decode` runs beside the loop, in a thread, on the answer's document."""
        async with self._turns:
            return await threads.run(lambda: decode(self.transport.request(call)), f"kube-{call.method.lower()}")

    async def get(self, resource: Resource, name: str, namespace: str = "", timeout_s: float = 10.0) -> Document:
        """An object as it is now (not from a cache); raises NotFound."""
        return await self._ask("GET", resource.path(namespace, name), timeout_s=timeout_s)

    async def create(
        self, resource: Resource, document: Document, namespace: str = "", timeout_s: float = 10.0
    ) -> Document:
        """Make an object, or a review, and return it as it is then; raises Conflict if one of this name exists."""
        return await self._ask("POST", resource.path(namespace), document, timeout_s=timeout_s)

    async def replace(
        self, resource: Resource, document: Document, namespace: str = "", timeout_s: float = 10.0
    ) -> Document:
        """Write a whole object; with its resourceVersion in it, raises Conflict if it has changed meanwhile."""
        name = document["metadata"]["name"]
        return await self._ask("PUT", resource.path(namespace, name), document, timeout_s=timeout_s)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: Document,
        namespace: str = "",
        subresource: str = "",
        timeout_s: float = 10.0,
    ) -> Document:
        """Change fields; with metadata.resourceVersion in the patch, raises Conflict if the object has changed."""
        path = resource.path(namespace, name, subresource)
        return await self._ask("PATCH", path, patch, content_type=_MERGE_PATCH, timeout_s=timeout_s)

    async def apply(
        self, resource: Resource, document: Document, namespace: str = "", subresource: str = "", *, force: bool = True
    ) -> Document:
        """Server-side apply: create or change; fields that were applied before and are no longer there go away."""
        path = resource.path(namespace, document["metadata"]["name"], subresource)
        query = {"force": "true" if force else "false"}
        return await self._ask("PATCH", path, document, query, content_type=_APPLY_PATCH)

    async def delete(
        self, resource: Resource, name: str, namespace: str = "", *, uid: str = "", grace_s: int | None = None
    ) -> None:
        """Remove an object (only the one of this uid, if one is given), a pod with this grace; raises NotFound."""
        body: Document = {"preconditions": {"uid": uid}} if uid else {}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        await self._ask("DELETE", resource.path(namespace, name), body or None)

    async def page(
        self, selection: Selection, rest: str = "", *, limit: int = PAGE_SIZE, timeout_s: float = _PAGE_TIMEOUT_S
    ) -> Page:
        """A part of a list, from its beginning or from what `rest` of the last part says."""
        return await self.page_of(selection, lambda item: item, rest, limit=limit, timeout_s=timeout_s)

    async def page_of(
        self,
        selection: Selection,
        decode: Callable[[Document], Any],
        rest: str = "",
        *,
        limit: int = PAGE_SIZE,
        timeout_s: float = _PAGE_TIMEOUT_S,
    ) -> Page:
        """As `page`, each item decoded beside the loop; `limit` 0 asks for everything at once."""
        # `continue` is a word of Python's and so cannot be a keyword of `query`.
        query = selection.query(**{"limit": limit or "", "continue": rest})
        accept = METADATA_LIST if selection.metadata_only else JSON
        call = Call("GET", selection.path, query, accept=accept, timeout_s=timeout_s)
        return await self.request(call, lambda document: _page(document, decode))

    async def pages(self, selection: Selection) -> AsyncIterator[list[Document]]:
        """All parts of a list. Raises Gone if it took so long that its history is no longer kept."""
        rest, is_last = "", False
        while not is_last:
            page = await self.page(selection, rest)
            yield page.items
            rest, is_last = page.rest, not page.rest

    async def _ask(
        self,
        method: str,
        path: str,
        body: Document | None = None,
        query: Mapping[str, str | int] | None = None,
        **options: Any,
    ) -> Document:
        if method != "GET":
            query = {**(query or {}), "fieldManager": self._field_manager} if method != "DELETE" else query
        return await self.request(Call(method, path, query, body, **options), _mapping)


def _page(document: Any, decode: Callable[[Document], Any]) -> Page:
    metadata = _mapping(document).get("metadata") or {}
    items = [decode(item) for item in document.get("items") or ()]
    return Page(items, str(metadata.get("resourceVersion", "")), str(metadata.get("continue", "") or ""))


def _mapping(document: Any) -> Document:
    return document if isinstance(document, dict) else {}
