"""A peer that is far away, or stands still: a TCP relay whose kernel goes on answering when nothing gets through."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Relay:
    """Carries connections to a port of loopback, each way by so much later, until it is told to stand still."""

    def __init__(self, target: int, delay_s: float = 0.0) -> None:
        self._target = target
        self._delay_s = delay_s
        self._moves = asyncio.Event()
        self._moves.set()
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Relay"]:
        """Listen; connections end with it."""
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.get_running_loop().create_task(self._carry(reader, writer), name="relay"))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stand_still(self) -> None:
        """From now on not a byte gets through, and nobody is told."""
        self._moves.clear()

    async def _carry(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(self._pump(near_reader, far), self._pump(far_reader, near))
        finally:
            near.close()
            far.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await self._moves.wait()
                await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
            await self._moves.wait()
            writer.close()
