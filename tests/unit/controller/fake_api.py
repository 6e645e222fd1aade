"""An API server of a few lines, scripted: lists in pages, watches, versions, and every way to fail on demand."""

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from mesh.kube.api import Api

Document = dict[str, Any]

PLURALS = {
    "Namespace": "namespaces",
    "Node": "nodes",
    "ServiceAccount": "serviceaccounts",
    "Pod": "pods",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "Lease": "leases",
    "Event": "events",
    "CustomResourceDefinition": "customresourcedefinitions",
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
    "Gateway": "gateways",
    "HTTPRoute": "httproutes",
}
CUSTOM = {"security.istio.io": ("AuthorizationPolicy", "PeerAuthentication")}
WIDE = ("Namespace", "Node", "CustomResourceDefinition")


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    content_type: str = ""
    accept: str = ""

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


@dataclass
class Answer:
    """`raw` lines go into a watch as they are; `cut` ends the connection after them."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    cut: bool = False
    hang: bool = False


def refusal(status: int, message: str = "scripted", **headers: str) -> Answer:
    return Answer(status, {"kind": "Status", "code": status, "message": message}, headers)


def collection_of(document: Document) -> str:
    group, slash, version = document["apiVersion"].partition("/")
    root = f"/apis/{group}/{version}" if slash else f"/api/{group}"
    return f"{root}/{PLURALS[document['kind']]}"


def name_of(document: Document) -> str:
    metadata = document["metadata"]
    return (
        metadata["name"] if document["kind"] in WIDE else f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    )


def definition(kind: str, group: str, *versions: str) -> Document:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURALS[kind]}.{group}"},
        "spec": {"versions": [{"name": version, "served": True} for version in versions]},
    }


class FakeApi:
    """Objects by collection, and all that has happened."""

    def __init__(self) -> None:
        self.version = 100
        self.floor = 0  # events before this are compacted
        self.objects: dict[str, dict[str, Document]] = {}
        self.history: list[tuple[int, str, str, Document]] = []
        self.requests: list[Request] = []
        self.script: Callable[[Request], Answer | None] = lambda request: None
        self.page_size_limit = 10_000
        self.delay_s = 0.0  # of each answer
        self._moved = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    # --- what tests do

    def put(self, *documents: Document) -> None:
        for document in documents:
            key = collection_of(document), name_of(document)
            known = self.objects.setdefault(key[0], {}).get(key[1])
            made = copy.deepcopy(document)
            before = (known or {}).get("metadata", {})
            made["metadata"].setdefault("uid", before.get("uid", f"uid-{self.version}"))
            has_same_spec = known is not None and known.get("spec") == made.get("spec")
            made["metadata"]["generation"] = before.get("generation", 0) + (0 if has_same_spec else 1)
            self._note("MODIFIED" if known else "ADDED", *key, made)

    def delete(self, document: Document) -> None:
        key = collection_of(document), name_of(document)
        self._note("DELETED", *key, copy.deepcopy(self.objects[key[0]][key[1]]))

    def define(self, *kinds: str) -> None:
        for kind in kinds:
            self.put(definition(kind, "security.istio.io", "v1", "v1beta1"))

    def get(self, document: Document) -> Document:
        return self.objects[collection_of(document)][name_of(document)]

    def save(self) -> tuple[Any, ...]:
        return copy.deepcopy((self.version, self.objects, self.history))

    def restore(self, saved: tuple[Any, ...]) -> None:
        self.version, self.objects, self.history = copy.deepcopy(saved)

    def drop_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def watches(self) -> list[Request]:
        return [request for request in self.requests if request.is_watch]

    def lists(self, plural: str) -> list[Request]:
        return [
            one
            for one in self.requests
            if one.path.endswith(f"/{plural}")
            and one.method == "GET"
            and not one.is_watch
            and one.query.get("limit") != "1"
        ]

    def _note(self, kind: str, path: str, name: str, document: Document) -> None:
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        if kind == "DELETED":
            del self.objects[path][name]
        else:
            self.objects.setdefault(path, {})[name] = document
        self.history.append((self.version, kind, path, document))
        self._moved.set()
        self._moved = asyncio.Event()

    # --- the server

    @contextlib.asynccontextmanager
    async def serving(self, tmp_path: Path) -> AsyncIterator[Api]:
        await self.start()
        path = tmp_path / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        try:
            yield Api.connect(path)
        finally:
            await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.drop_connections()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                await asyncio.sleep(self.delay_s)
                answer = self.script(request)
                if answer is not None and answer.hang:
                    await asyncio.Event().wait()
                elif request.is_watch and (answer is None or answer.raw is not None):
                    await self._stream(request, answer, writer)
                else:
                    _write(writer, answer or self._answer(request))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _stream(self, request: Request, answer: Answer | None, writer: asyncio.StreamWriter) -> None:
        if request.path not in self.objects and self._is_undefined(request.path):
            _write(writer, refusal(404, "the server could not find the requested resource"))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if answer is not None and answer.raw is not None:
            _chunk(writer, answer.raw)
            await writer.drain()
            if answer.cut:
                writer.transport.abort()
            else:
                writer.write(b"0\r\n\r\n")
            return
        seen = int(request.query["resourceVersion"])
        if seen < self.floor:
            status = {"kind": "Status", "code": 410, "message": f"too old resource version: {seen} ({self.floor})"}
            _chunk(writer, json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            writer.write(b"0\r\n\r\n")
            return
        while True:
            moved = self._moved
            for version, kind, path, document in list(self.history):
                if path == request.path and version > seen:
                    seen = version
                    _chunk(writer, json.dumps({"type": kind, "object": document}).encode() + b"\n")
            await writer.drain()
            await moved.wait()

    def _is_undefined(self, path: str) -> bool:
        for group, kinds in CUSTOM.items():
            for kind in kinds:
                if path.startswith(f"/apis/{group}/") and PLURALS[kind] in path:
                    known = self.objects.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {})
                    return f"{PLURALS[kind]}.{group}" not in known
        return False

    def _answer(self, request: Request) -> Answer:
        path, name, subresource = _split(request.path)
        if self._is_undefined(path):
            return refusal(404, "the server could not find the requested resource")
        known = self.objects.get(path, {})
        if request.method == "GET" and not name:
            return self._list(path, request)
        if request.method == "POST":
            return self._create(path, request.body)
        if name not in known:
            return refusal(404, "not found")
        if request.method == "GET":
            return Answer(200, known[name])
        return self._write_object(path, name, subresource, request)

    def _create(self, path: str, document: Document) -> Answer:
        full = name_of({**document, "kind": _kind(path)})
        if full in self.objects.get(path, {}):
            return refusal(409, "already exists")
        self.put(document)
        return Answer(201, self.objects[path][full])

    def _write_object(self, path: str, name: str, subresource: str, request: Request) -> Answer:
        before = self.objects[path][name]
        wanted = request.body.get("metadata", {}).get("resourceVersion")
        if wanted and wanted != before["metadata"]["resourceVersion"]:
            return refusal(409, "the object has been modified")
        if request.method == "PUT":
            self.put(request.body)
        else:
            after = copy.deepcopy(before)
            part = {"status": request.body["status"]} if subresource == "status" else request.body
            self.put(_merge(after, part))
        return Answer(200, self.objects[path][name])

    def _list(self, path: str, request: Request) -> Answer:
        items = [item for _, item in sorted(self.objects.get(path, {}).items())]
        version, start = self.version, 0
        if token := request.query.get("continue"):
            version, start = map(int, token.split("-"))
            if version < self.floor:
                return refusal(410, "the provided continue parameter is too old")
        limit = int(request.query.get("limit", 0)) or self.page_size_limit
        metadata: Document = {"resourceVersion": str(version)}
        if start + limit < len(items):
            metadata["continue"] = f"{version}-{start + limit}"
        return Answer(200, {"metadata": metadata, "items": items[start : start + limit]})


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _kind(path: str) -> str:
    plural = path.rpartition("/")[2]
    return next(kind for kind, one in PLURALS.items() if one == plural)


def _split(path: str) -> tuple[str, str, str]:
    """Collection, name and subresource of a path."""
    parts = path.strip("/").split("/")
    head = 2 if parts[0] == "api" else 3
    root, rest = parts[:head], parts[head:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    name = f"{namespace}/{rest[1]}" if namespace and len(rest) > 1 else "".join(rest[1:2])
    return f"/{'/'.join(root)}/{rest[0]}", name, "".join(rest[2:3])


async def _read(reader: asyncio.StreamReader) -> Request | None:
    line = await reader.readline()
    if not line:
        return None
    method, target, _ = line.decode().split(" ")
    headers = {}
    while (header := (await reader.readline()).decode().strip()) != "":
        name, _, value = header.partition(":")
        headers[name.lower()] = value.strip()
    size = int(headers.get("content-length", 0))
    body = json.loads(await reader.readexactly(size)) if size else None
    url = urlsplit(target)
    return Request(
        method, url.path, dict(parse_qsl(url.query)), body, headers.get("content-type", ""), headers["accept"]
    )


def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    body = answer.raw if answer.raw is not None else json.dumps(answer.body).encode()
    headers = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in answer.headers.items())
    head = f"HTTP/1.1 {answer.status} Scripted\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
