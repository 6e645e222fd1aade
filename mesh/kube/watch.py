"""One watch: events of a collection from a resourceVersion on, as they come.

A thread of its own reads and decodes; the loop takes what has gathered. A silent connection is not trusted: it ends
with Silent after `silence_s`. A server may send bookmarks about once a minute, but has none for a collection that is at
rest. What is cut in the middle of a line is dropped with that line; the events before it count.
"""

import contextlib
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import urllib3

from mesh.kube import errors
from mesh.kube.api import METADATA, Selection
from mesh.kube.threads import Channel, Closed
from mesh.kube.transport import JSON, Call, Transport

T = TypeVar("T")

ADDED, MODIFIED, DELETED, BOOKMARK, ERROR = "ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"
OPENED = "OPENED"  # our own: the server has taken the request

# Bookmarks come about once a minute, where they come.
SILENCE_S = 100.0
# How long a server is asked to keep a watch open, at least; at most twice as long, so that not all end together.
_DURATION_S = 240
# Objects have at most 1.5 MiB in etcd, and some more as JSON.
_MAX_LINE_BYTES = 16 << 20
_MAX_WAITING = 2000


class WatchEnded(Exception):
    """The server has ended the watch in good order: go on with a new one."""


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """A change; a BOOKMARK carries no object, only how far the server has come, and OPENED neither."""

    type: str
    version: str
    object: T | None


class Watch(Generic[T]):
    """An open watch, an async context manager; `decode` runs in its thread on each object."""

    def __init__(
        self,
        transport: Transport,
        selection: Selection,
        version: str,
        decode: Callable[[Any], T],
        silence_s: float = SILENCE_S,
    ) -> None:
        duration_s = random.randrange(_DURATION_S, 2 * _DURATION_S)
        query = selection.query(
            watch="true", allowWatchBookmarks="true", resourceVersion=version, timeoutSeconds=duration_s
        )
        accept = METADATA if selection.metadata_only else JSON
        self._call = Call("GET", selection.path, query, accept=accept)
        self._transport = transport
        self._decode = decode
        self._silence_s = silence_s
        self._channel: Channel[Event[T] | BaseException] = Channel(_MAX_WAITING)
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._is_left = False
        self._end: BaseException | None = None

    async def __aenter__(self) -> "Watch[T]":
        threading.Thread(target=self._run, name=f"watch {self._call.path}", daemon=True).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_left = True
        self._channel.close()
        _wake(self._answer)

    async def take(self) -> list[Event[T]]:
        """What has come since the last call, at least one event; raises WatchEnded or ApiFault."""
        if self._end is None:
            items = await self._channel.take()
            self._end = next((item for item in items if isinstance(item, BaseException)), self._end)
            if events := [item for item in items if isinstance(item, Event)]:
                return events
        raise self._end or WatchEnded()

    def stop(self) -> None:
        """Let `take` end as if the server had ended the watch."""
        self._end = self._end or WatchEnded()
        self._channel.nudge()

    # --- in the thread

    def _run(self) -> None:
        end: BaseException = WatchEnded()
        try:
            with self._transport.stream(self._call, self._silence_s) as answer:
                self._answer = answer
                self._channel.put([Event(OPENED, "", None)])
                for events in self._read(answer):
                    self._channel.put(events)
        except Closed:
            return
        except BaseException as error:
            end = error
        with contextlib.suppress(Closed):
            self._channel.put([end])

    def _read(self, answer: urllib3.BaseHTTPResponse) -> Iterator[list[Event[T] | BaseException]]:
        rest = b""
        for chunk in answer.stream(1 << 16):
            if self._is_left:
                raise Closed
            *lines, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
            if len(rest) > _MAX_LINE_BYTES:
                raise errors.Unavailable(f"{self._call}: an event has more than {_MAX_LINE_BYTES} bytes")
            if lines:
                yield list(self._events(lines))
        if rest.strip():
            raise errors.Unavailable(f"{self._call}: the watch was cut in the middle of an event")

    def _events(self, lines: list[bytes]) -> Iterator[Event[T] | BaseException]:
        for line in lines:
            if not line.strip():
                continue
            try:
                document = json.loads(line)
                kind, item = document["type"], document["object"]
                if kind == ERROR:
                    yield errors.of_event(str(self._call), item)
                    return
                version = str(item["metadata"]["resourceVersion"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                yield errors.Unavailable(f"{self._call}: not an event of a watch: {error!r}")
                return
            if kind == BOOKMARK:
                yield Event(kind, version, None)
            elif kind in (ADDED, MODIFIED, DELETED):
                yield Event(kind, version, self._decode(item))


def _wake(answer: urllib3.BaseHTTPResponse | None) -> None:
    """Let go of a thread that reads, by the plain socket: TLS's own shutdown would take its state from the reader."""
    connection = getattr(answer, "connection", None)
    sock = getattr(connection, "sock", None)
    if isinstance(sock, socket.socket):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
