"""The channel to the controller: one for the stream and for certificate requests.

gRPC connects it again by itself. A renewed credential on disk makes a new channel when the next stream starts; the
old one is closed once calls that are under way on it have had their time.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc.aio

from mesh.channel import Credentials, open_channel

Metadata = Sequence[tuple[str, str]]

# Longer than any single call's own timeout.
_CLOSE_GRACE_S = 30.0


class ControllerLink:
    """Owns the channel to the controller at `address`, whose certificate must carry the DNS name `name`."""

    def __init__(self, address: str, name: str, credentials: Credentials) -> None:
        self._address = address
        self._name = name
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._made_from: object = None
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """The channel, made now if there is none; raises CredentialFault."""
        if self._channel is None:
            self._made_from = self._credentials.stamp()
            self._channel = open_channel(self._address, self._name, self._credentials)
        return self._channel

    def metadata(self) -> Metadata:
        """What goes along with every call."""
        return self._credentials.metadata()

    def refresh(self) -> None:
        """Before a stream starts: leave a channel whose credentials are not those on disk any more."""
        if self._channel is not None and self._made_from != self._credentials.stamp():
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


async def _close(channel: grpc.aio.Channel, grace_s: float | None) -> None:
    await cast(Any, channel).close(grace_s)
