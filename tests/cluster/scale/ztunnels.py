"""Ztunnels without a data path, many in one process: each takes what it is sent, answers at once, and remembers.

A line on standard input is a question, a line of JSON on standard output its answer:

    held        per ztunnel how many resources it holds, how many came so far, and one digest of them all
    names       the names that the first ztunnel holds
    marks       of each mark, and each name that was removed: when the first and the last ztunnel had it, and how many
"""

import argparse
import asyncio
import contextlib
import gc
import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from mesh import grpc_engine
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, DELTA_METHOD

_MARK = re.compile(rb"m-[0-9]{8}|100\.[0-9]+\.[0-9]+\.[0-9]+")
_TYPES = (AUTHORIZATION_TYPE, ADDRESS_TYPE)
_RETRY_S = 0.2
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each, as on as many nodes
    ("grpc.max_receive_message_length", 16 << 20),
]

# Equal texts of a hundred ztunnels are one in memory.
_texts: dict[str, str] = {}


class Ztunnel:
    """One of them: what it holds over its streams."""

    def __init__(self, number: int, marks: "Marks") -> None:
        self._number = number
        self._marks = marks
        self.held: dict[str, dict[str, str]] = {type_url: {} for type_url in _TYPES}
        self.received = 0
        self.responses = 0
        self.streams = 0
        self.synced: set[str] = set()

    async def run(self, address: str, credentials: grpc.ChannelCredentials) -> None:
        """Stay connected until cancelled."""
        async with grpc.aio.secure_channel(address, credentials, options=_OPTIONS) as channel:
            method: Any = channel.stream_stream(
                DELTA_METHOD, request_serializer=bytes, response_deserializer=DeltaDiscoveryResponse.FromString
            )
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._stream(method(wait_for_ready=True))
                self.synced.clear()
                await asyncio.sleep(_RETRY_S)

    async def _stream(self, call: Any) -> None:
        self.streams += 1
        for type_url in _TYPES:
            request = DeltaDiscoveryRequest(type_url=type_url)
            request.node.id = f"ztunnel-{self._number}"
            request.initial_resource_versions.update(self.held[type_url])
            await call.write(request.SerializeToString())
        while (response := await call.read()) is not grpc.aio.EOF:
            self._take(response)
            answer = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            await call.write(answer.SerializeToString())

    def _take(self, response: DeltaDiscoveryResponse) -> None:
        now = time.monotonic()
        held = self.held[response.type_url]
        self.synced.add(response.type_url)
        self.responses += 1
        self.received += len(response.resources) + len(response.removed_resources)
        for resource in response.resources:
            held[_one(resource.name)] = _one(resource.version)
            self._marks.look(resource.resource.value, now)
        for name in response.removed_resources:
            held.pop(name, None)
            self._marks.note(_one(name), now)

    def digest(self) -> str:
        """The same for all that hold the same."""
        return hashlib.sha256(json.dumps(self.held, sort_keys=True).encode()).hexdigest()[:16]


class Marks:
    """When each mark came, over all ztunnels."""

    def __init__(self, ztunnels: int) -> None:
        self._ztunnels = ztunnels
        self.seen: dict[str, list[float]] = {}  # first, last, to how many

    def look(self, value: bytes, now: float) -> None:
        """Note the marks of a resource; one that every ztunnel has had counts no more, whatever carries it again."""
        for found in _MARK.findall(value):
            self.note(found.decode(), now)

    def note(self, mark: str, now: float) -> None:
        """One more has had it."""
        known = self.seen.setdefault(mark, [now, now, 0])
        if known[2] < self._ztunnels:
            known[1] = now
            known[2] += 1


def _one(text: str) -> str:
    return _texts.setdefault(text, text)


def _answer(question: str, ztunnels: list[Ztunnel], marks: Marks) -> object:
    if question == "names":
        return sorted(name for held in ztunnels[0].held.values() for name in held)
    if question == "marks":
        return marks.seen
    return {
        "held": [sum(map(len, one.held.values())) for one in ztunnels],
        "received": [one.received for one in ztunnels],
        "responses": [one.responses for one in ztunnels],
        "streams": [one.streams for one in ztunnels],
        "synced": sum(one.synced.issuperset(_TYPES) for one in ztunnels),
        "digests": sorted({one.digest() for one in ztunnels}),
    }


async def _serve(options: argparse.Namespace) -> None:
    files = [(options.credential / name).read_bytes() for name in ("roots.pem", "key.pem", "cert.pem")]
    credentials = grpc.ssl_channel_credentials(*files)
    marks = Marks(options.count)
    ztunnels = [Ztunnel(number, marks) for number in range(options.count)]
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = [loop.create_task(one.run(options.address, credentials)) for one in ztunnels]
    try:
        while question := (await reader.readline()).decode().strip():
            print(json.dumps(_answer(question, ztunnels, marks)), flush=True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True)
    parser.add_argument("--credential", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    gc.disable()  # a pause for what a hundred hold is one that no node has
    grpc_engine.choose()  # as a ztunnel does
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
