"""The supervisor's socket: one JSON line in, one JSON line out, then it closes. Root's only: it has mode 0600."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.ask import Refused

log = logging.getLogger(__name__)

# The manifests of a large lab in one line.
MAX_LINE_BYTES = 32 << 20
REQUEST_DEADLINE_S = 10.0

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlServer:
    """Answers orders by name; an async context manager. What a handler raises as Refused becomes the answer."""

    def __init__(self, path: Path, handlers: dict[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "ControlServer":
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_LINE_BYTES)
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                line = await reader.readline()
            writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
            await writer.drain()
        except (TimeoutError, ValueError, ConnectionError) as error:
            log.info("order dropped: %s", error)
        finally:
            with suppress(Exception):
                writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            order = json.loads(line)
            handler = self._handlers[order["do"]]
        except (ValueError, KeyError, TypeError) as error:
            return {"error": f"not an order: {error}"}
        try:
            return await handler(order)
        except Refused as error:
            return {"error": str(error)}
        except Exception as error:
            log.exception("%s", order["do"])
            return {"error": f"the lab failed: {type(error).__name__}: {error} (see its supervisor.log)"}
