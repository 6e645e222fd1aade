"""The small HTTP/1.1 server behind every admin, metrics and readiness port.

h11 speaks the protocol; this module only moves bytes and finds the handler. One request per connection is enough for
probes, scrapes and a person with curl, so a connection closes after its answer. It owns no state of its components:
a handler gets a request and returns a response.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11

log = logging.getLogger(__name__)

# A scraper or a person needs a handful of connections; more than this is somebody's loop, and then the address that has
# most of them gives way with its oldest: metrics and readiness are asked from other machines, and nobody may hold all.
MAX_CONNECTIONS = 64
REQUEST_TIMEOUT_S = 10.0
MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; header names are lower case, a repeated query key keeps its last value."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def text(cls, text: str, status: int = 200) -> "Response":
        """A line for people; ends with a newline."""
        return cls(status=status, body=(text.rstrip("\n") + "\n").encode())

    @classmethod
    def json(cls, value: Any, status: int = 200) -> "Response":
        """A value for machines, indented so that people can read it too."""
        body = json.dumps(value, indent=2, default=str).encode() + b"\n"
        return cls(status=status, body=body, content_type="application/json")


Handler = Callable[[Request], Awaitable[Response]]
Routes = Mapping[tuple[str, str], Handler]


class _Refused(Exception):
    """The request is answered with a status and goes no further."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class HttpServer:
    """Serves `routes`, keyed by (method, path), on one address; an async context manager."""

    def __init__(self, host: str, port: int, routes: Routes) -> None:
        self._host = host
        self._port = port
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, str] = {}  # and who is at its other end; the oldest first

    @property
    def port(self) -> int:
        """The port that is bound, also when 0 was asked for."""
        assert self._server is not None, "HttpServer is not entered"
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def __aenter__(self) -> "HttpServer":
        if self._host == "::":  # everywhere, IPv4 too: asyncio alone would take IPv6 only
            everywhere = socket.create_server(("::", self._port), family=socket.AF_INET6, dualstack_ipv6=True)
            self._server = await asyncio.start_server(self._serve, sock=everywhere)
        else:
            self._server = await asyncio.start_server(self._serve, self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            self._make_room()
        self._open[writer] = str((writer.get_extra_info("peername") or ("",))[0])
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._exchange(reader, writer)
        except (TimeoutError, ConnectionError, h11.ProtocolError) as error:
            log.debug("admin connection ended: %s", error)
        finally:
            self._open.pop(writer, None)
            with contextlib.suppress(Exception):
                writer.close()

    def _make_room(self) -> None:
        ((greediest, _),) = Counter(self._open.values()).most_common(1)
        oldest = next(writer for writer, address in self._open.items() if address == greediest)
        del self._open[oldest]
        oldest.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16 * 1024)
        try:
            response = await self._answer(await _read_request(connection, reader))
        except _Refused as refusal:
            response = Response.text(str(refusal), refusal.status)
        except h11.RemoteProtocolError as error:
            response = Response.text(str(error), error.error_status_hint)
        async for data in _encode(connection, response):
            writer.write(data)
            await writer.drain()

    async def _answer(self, request: Request) -> Response:
        handler = self._routes.get((request.method, request.path))
        if handler is not None:
            try:
                return await handler(request)
            except ValueError as error:  # a handler's word for a bad argument
                return Response.text(str(error), 400)
        if any(path == request.path for _, path in self._routes):
            raise _Refused(405, f"{request.path} does not take {request.method}")
        known = "\n".join(sorted(f"  {method} {path}" for method, path in self._routes))
        raise _Refused(404, f"{request.path} is not served here; these are:\n{known}")


async def _read_request(connection: h11.Connection, reader: asyncio.StreamReader) -> Request:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(16 * 1024))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise _Refused(413, f"a body may have {MAX_BODY_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None, "h11 ends a message only after its head"
            break
        else:
            raise ConnectionResetError("closed before a request was complete")
    try:
        url = urlsplit(head.target.decode("ascii", "replace"))
    except ValueError as error:
        raise _Refused(400, f"not an address: {error}") from error
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    return Request(head.method.decode("ascii"), url.path, dict(parse_qsl(url.query)), headers, bytes(body))


async def _encode(connection: h11.Connection, response: Response) -> AsyncIterator[bytes]:
    headers = {
        "content-type": response.content_type,
        "content-length": str(len(response.body)),
        "connection": "close",
        **response.headers,
    }
    head = connection.send(h11.Response(status_code=response.status, headers=list(headers.items())))
    assert head is not None, "h11 encodes every head"
    yield head
    if response.body and (data := connection.send(h11.Data(data=response.body))):
        yield data
    if end := connection.send(h11.EndOfMessage()):
        yield end
