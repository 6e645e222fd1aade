"""The channel to the controller: one for the stream and for certificate requests.

gRPC connects it again by itself. A renewed credential on disk makes a new channel when the next stream starts; the
old one is closed once calls that are under way on it have had their time.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import grpc.aio

Metadata = Sequence[tuple[str, str]]

# Longer than any single call's own timeout.
_CLOSE_GRACE_S = 30.0


class ControllerLink:
    """Owns the channel; `open_channel` may raise mesh.channel.CredentialFault."""

    def __init__(
        self, open_channel: Callable[[], grpc.aio.Channel], metadata: Callable[[], Metadata], credentials: Path
    ) -> None:
        self._open_channel = open_channel
        self.metadata = metadata
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._made_from: object = None
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """The channel, made now if there is none."""
        if self._channel is None:
            self._made_from = self._stamp()
            self._channel = self._open_channel()
        return self._channel

    def refresh(self) -> None:
        """Before a stream starts: leave a channel whose credentials are not those on disk any more."""
        if self._channel is not None and self._made_from != self._stamp():
            old, self._channel = self._channel, None
            task = asyncio.get_running_loop().create_task(_close(old, _CLOSE_GRACE_S), name="old channel")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the channel, at the end of the process."""
        channel, self._channel = self._channel, None
        for task in self._closing:
            task.cancel()
        if channel is not None:
            await _close(channel, None)

    def _stamp(self) -> list[tuple[str, int, int]]:
        found = []
        for name in ("cert.pem", "key.pem", "roots.pem"):
            with contextlib.suppress(OSError):
                status = (self._credentials / name).stat()
                found.append((name, status.st_mtime_ns, status.st_ino))
        return found


async def _close(channel: grpc.aio.Channel, grace_s: float | None) -> None:
    await cast(Any, channel).close(grace_s)
