"""Writes to an API server over many connections: HTTP/1.1 on asyncio streams, one request at a time on each.

The project's own client takes a thread per request, which is right for a controller and too slow for ten thousand pods.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.cluster.scale.world import Document, Item

CONNECTIONS = 32
_MERGE = "application/merge-patch+json"
_ALREADY_EXISTS = 409


class Refused(Exception):
    """The API server did not do what it was asked; the message has its words."""


class _Connection:
    """One connection; opened by its first request."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext, token: str) -> None:
        self._place = host, port
        self._tls = tls
        self._head = f"Host: {host}\r\nAuthorization: Bearer {token}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, document: Any, content_type: str) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place, ssl=self._tls, limit=1 << 22)
        reader, writer = self._streams
        body = b"" if document is None else json.dumps(document).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\n{self._head}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        )
        writer.write(head.encode() + b"\r\n" + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if fields.get("transfer-encoding") == "chunked":
            return int(lines[0].split()[1]), await _chunks(reader)
        return int(lines[0].split()[1]), await reader.readexactly(int(fields.get("content-length", "0")))

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


class Writer:
    """A pool of connections as one administrator; an asynchronous context manager."""

    def __init__(self, kubeconfig: Path, connections: int = CONNECTIONS) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        url = urlsplit(cluster["server"])
        tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._free: asyncio.Queue[_Connection] = asyncio.Queue()
        self._all = [_Connection(url.hostname or "", url.port or 443, tls, user["token"]) for _ in range(connections)]
        for one in self._all:
            self._free.put_nowait(one)

    async def __aenter__(self) -> "Writer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._all:
            one.close()

    async def make(self, items: Iterable[Item]) -> None:
        """Make objects, as many at once as there are connections; what is there already stays."""
        waiting = iter(items)

        async def work() -> None:
            for item in waiting:
                await self.create(item, may_exist=True)

        async with asyncio.TaskGroup() as group:
            for _ in self._all:
                group.create_task(work())

    async def create(self, item: Item, *, may_exist: bool = False) -> None:
        """Make an object and, where it has one, its status."""
        allowed = (_ALREADY_EXISTS,) if may_exist else ()
        await self._ask("POST", item.resource.path(item.namespace), item.document, allowed=allowed)
        if item.status is not None:
            await self.patch(item, item.status, "status")

    async def patch(self, item: Item, patch: Document, subresource: str = "") -> float:
        """Merge fields into an object; the moment in which a connection was free for that (monotonic seconds)."""
        path = item.resource.path(item.namespace, item.name, subresource)
        return await self._ask("PATCH", path, patch, _MERGE)

    async def delete(self, item: Item) -> float:
        """Remove an object at once; as `patch`."""
        path = item.resource.path(item.namespace, item.name)
        return await self._ask("DELETE", path, {"gracePeriodSeconds": 0})

    async def _ask(
        self,
        method: str,
        path: str,
        document: Any,
        content_type: str = "application/json",
        allowed: tuple[int, ...] = (),
    ) -> float:
        connection = await self._free.get()
        began = time.monotonic()
        try:
            async with asyncio.timeout(60):
                status, body = await connection.ask(method, path, document, content_type)
        finally:
            self._free.put_nowait(connection)
        if status >= 300 and status not in allowed:
            raise Refused(f"{method} {path}: {status} {body[:500]!r}")
        return began
