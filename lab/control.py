"""The supervisor's socket: one JSON line in, one JSON line out, then it closes. Root's only: it has mode 0600.

A lab that ends takes its orders back first: what an order goes on making would outlive the lab.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.ask import Refused

log = logging.getLogger(__name__)

# The manifests of a large lab in one line.
MAX_LINE_BYTES = 32 << 20
REQUEST_DEADLINE_S = 10.0
# For orders that were taken back to say so.
LAST_ANSWERS_S = 2.0

Handler = Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]


class ControlServer:
    """Answers orders by name; an async context manager. What a handler raises as Refused becomes the answer.

    `why_ended` is asked for the answer to orders that are still being carried out when the context is left.
    """

    def __init__(self, path: Path, handlers: dict[str, Handler], why_ended: Callable[[], str]) -> None:
        self._path = path
        self._handlers = handlers
        self._why_ended = why_ended
        self._ended = asyncio.Event()
        self._serving: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "ControlServer":
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_LINE_BYTES)
        self._path.chmod(0o600)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)
        self._ended.set()
        if self._serving:
            await asyncio.wait(self._serving, timeout=LAST_ANSWERS_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
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
            return await self._unless_ended(handler(order), order["do"])
        except Refused as error:
            return {"error": str(error)}
        except Exception as error:
            log.exception("%s", order["do"])
            return {"error": f"the lab failed: {type(error).__name__}: {error} (see its supervisor.log)"}

    async def _unless_ended(self, work: Coroutine[Any, Any, dict[str, Any]], name: str) -> dict[str, Any]:
        doing = asyncio.get_running_loop().create_task(work, name=f"order {name}")
        ended = asyncio.get_running_loop().create_task(self._ended.wait(), name=f"end of order {name}")
        try:
            await asyncio.wait([doing, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            doing.cancel()  # nothing, when it is done
        with suppress(asyncio.CancelledError):
            return await doing
        raise Refused(self._why_ended())
