"""Messages between two machines of a lab: JSON lines, each a kind and a body, with a bound on size and on silence."""

import asyncio
import json
import socket
import ssl
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from lab.control import MAX_LINE_BYTES

Message = tuple[str, dict[str, Any]]

HANDSHAKE_DEADLINE_S = 5.0
# Each side says something at least this often, so that a machine that is switched off is noticed.
SPEAK_EVERY_S = 3.0
SILENCE_S = 12.0


class LinkLost(Exception):
    """The other machine is gone, silent, or does not speak as it should."""


class WrongToken(LinkLost):
    """The other side holds another secret: waiting does not help."""


class Link:
    """One authenticated connection; one task reads, any number write."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def own_address(self) -> str:
        """The address of this machine on the network between them."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def peer_address(self) -> str:
        """The address of the other machine."""
        return str(self._writer.get_extra_info("peername")[0])

    async def send(self, kind: str, body: dict[str, Any]) -> None:
        """Send one message; raises LinkLost."""
        try:
            async with asyncio.timeout(SILENCE_S):
                self._writer.write(json.dumps({"kind": kind, "body": body}).encode() + b"\n")
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise LinkLost(f"{kind} is not taken: {error or 'the other side does not read'}") from error

    async def receive(self, within_s: float = SILENCE_S) -> Message:
        """The next message; raises LinkLost."""
        try:
            async with asyncio.timeout(within_s):
                line = await self._reader.readline()
        except TimeoutError as error:
            raise LinkLost(f"nothing was heard for {within_s:g} s") from error
        except (OSError, ValueError) as error:
            raise LinkLost(str(error)) from error
        if not line.endswith(b"\n"):
            raise LinkLost("the other side has closed the connection")
        return _message(line)

    def close(self) -> None:
        """Let go of the connection."""
        with suppress(Exception):
            self._writer.close()


def _message(line: bytes) -> Message:
    try:
        value = json.loads(line)
        kind, body = value["kind"], value["body"]
    except (ValueError, KeyError, TypeError) as error:
        raise LinkLost(f"not a message: {error}") from error
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise LinkLost("not a message: a kind is a text and a body a mapping")
    return kind, body


async def connect(address: str, port: int, context: ssl.SSLContext, name: str) -> Link:
    """Dial the home; raises LinkLost, as WrongToken when that is why."""
    try:
        async with asyncio.timeout(HANDSHAKE_DEADLINE_S):
            reader, writer = await asyncio.open_connection(
                address, port, ssl=context, server_hostname=name, limit=MAX_LINE_BYTES
            )
    except ssl.SSLError as error:
        raise WrongToken(f"it does not hold the same token ({error.reason or error})") from error
    except (OSError, TimeoutError) as error:
        raise LinkLost(str(error) or f"no answer within {HANDSHAKE_DEADLINE_S:g} s") from error
    return Link(reader, writer)


async def accept(sock: socket.socket, context: ssl.SSLContext) -> Link:
    """The TLS side of an accepted socket, which is closed when that fails; raises LinkLost."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=context, ssl_handshake_timeout=HANDSHAKE_DEADLINE_S
        )
    except OSError as error:  # SSLError and a handshake that takes too long are OSErrors too
        sock.close()
        raise LinkLost(f"no handshake: {error}") from error
    return Link(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run the parts of a conversation until one of them fails; raises that failure, a LinkLost last."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part, name="machine link")
    except ExceptionGroup as failed:
        grave = (error for error in failed.exceptions if not isinstance(error, LinkLost))
        raise next(grave, failed.exceptions[0]) from None
