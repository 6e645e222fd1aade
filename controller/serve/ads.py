"""Delta ADS: one `Stream` per node, each its own reader and writer.

Order across types keeps policies ahead of what refers to them: new and changed policies go before workloads, removed
ones after. A node so never holds a workload whose policy it does not know yet.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from controller.serve.callers import Caller, Gate, Right
from controller.serve.closing import SENTENCE, Closing
from controller.serve.feed import Feed
from controller.serve.hub import Hub
from controller.serve.store import Batch
from controller.status.metrics import Metrics
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest
from mesh.xds import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    ROOTS_TYPE,
    Acked,
    Event,
    Nacked,
    Publisher,
    RemoteProtocolError,
    Subscribed,
    Unserved,
    Unsubscribed,
    encode_response,
)

log = logging.getLogger(__name__)

_WORDS = {ADDRESS_TYPE: "address", AUTHORIZATION_TYPE: "authorization", ROOTS_TYPE: "roots"}

# Types that are not served and named in the log, per stream.
_UNSERVED_SAID = 8


@dataclass(slots=True)
class _Sent:
    """A response that is not answered yet."""

    revision: int  # of the type, reached once this is answered; 0 if more was waiting
    at: float


class Stream:
    """What one node has been sent and still gets. Implements the hub's Listener."""

    def __init__(self, caller: Caller, hub: Hub, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.caller = caller
        self.opened_at = clock()
        self.nacks = 0
        self._hub = hub
        self._metrics = metrics
        self._clock = clock
        self._publisher = Publisher(tuple(hub.sets))
        self._feeds = {
            type_url: Feed(resources, self._publisher.subscription(type_url))
            for type_url, resources in hub.sets.items()
        }
        self._counters = {
            type_url: (metrics.pushes.labels(_WORDS[type_url]), metrics.pushed_resources.labels(_WORDS[type_url]))
            for type_url in hub.sets
        }
        self._greeted: set[str] = set()
        self._sent: dict[str, dict[str, _Sent]] = {type_url: {} for type_url in hub.sets}
        self._settled: dict[str, int] = dict.fromkeys(hub.sets, 0)
        self._unserved: set[str] = set()
        self._refused: set[str] = set()
        self._is_held_back = False
        self._due = dict.fromkeys(hub.sets, 0)  # the revision of each type when the stream was last woken
        self._woken = asyncio.Event()

    # --- Listener

    def wake(self) -> None:
        """Look for something to send: what there is now. What comes while that is written waits for the next waking."""
        self._due = {type_url: resources.revision for type_url, resources in self._hub.sets.items()}
        self._woken.set()

    def has_settled(self, type_url: str, revision: int) -> bool:
        """The node has answered everything of the type up to the revision, or does not want the type."""
        if not self._publisher.is_asked(type_url) or self._settled[type_url] >= revision:
            return True
        return self._feeds[type_url].is_drained and self._publisher.is_settled(type_url)

    def has_accepted(self, type_url: str, revision: int) -> bool:
        """As `has_settled`, and it refused nothing of the last answered response."""
        return type_url not in self._refused and self.has_settled(type_url, revision)

    def has_taken(self, type_url: str, revision: int) -> bool:
        """The node wants the type and has acknowledged (or refused) all of it up to the revision."""
        return type_url in self._greeted and self.has_settled(type_url, revision)

    def cursor(self, type_url: str) -> int:
        """The revision that the stream has taken notice of."""
        if not self._publisher.is_asked(type_url):
            return self._hub.sets[type_url].revision
        return self._feeds[type_url].revision

    # --- the two directions

    def receive(self, request: DeltaDiscoveryRequest) -> None:
        """Take a request; raises RemoteProtocolError.

        An answer lets go what waited for it, and brings nothing new: that would be a response for every few changes,
        however far apart the hub keeps its wakings.
        """
        for event in self._publisher.receive(request):
            self._take(event)
            if self._is_held_back or isinstance(event, (Subscribed, Unsubscribed)):
                self.wake()

    async def wait(self) -> None:
        """Until there may be something to send."""
        await self._woken.wait()
        self._woken.clear()

    def next_response(self) -> bytes | None:
        """The next response to send; None if nothing is left that was there when the stream was woken."""
        if not any(self._is_behind(type_url) for type_url in self._feeds):
            self._is_held_back = False
            return None
        for type_url in (ROOTS_TYPE, AUTHORIZATION_TYPE, ADDRESS_TYPE):
            removals = type_url != AUTHORIZATION_TYPE
            if (response := self._respond(type_url, removals=removals)) is not None:
                return response
        if self._is_drained(ADDRESS_TYPE):
            response = self._respond(AUTHORIZATION_TYPE, removals=True)
            if response is not None:
                return response
        self._is_held_back = True
        return None

    def view(self) -> Mapping[str, object]:
        """The stream for the debug page."""
        types = {
            _WORDS[type_url]: {
                "subscribed": self._publisher.is_asked(type_url),
                "wildcard": self._publisher.subscription(type_url).is_wildcard,
                "names": len(self._publisher.subscription(type_url).names),
                "revision": feed.revision,
                "settled": self._settled[type_url],
                "unanswered": len(self._sent[type_url]),
            }
            for type_url, feed in self._feeds.items()
        }
        age_s = round(self._clock() - self.opened_at, 1)
        return {"node": self.caller.name, "age_s": age_s, "nacks": self.nacks, "types": types}

    def _is_drained(self, type_url: str) -> bool:
        return not self._publisher.is_asked(type_url) or self._feeds[type_url].is_drained

    def _is_behind(self, type_url: str) -> bool:
        if not self._publisher.is_asked(type_url):
            return False
        return type_url not in self._greeted or self._feeds[type_url].is_behind(self._due[type_url])

    def _respond(self, type_url: str, *, removals: bool) -> bytes | None:
        if not self._publisher.may_send(type_url):
            return None
        feed = self._feeds[type_url]
        batch = feed.next_batch(removals=removals)
        # A first response goes out even when it is empty: it tells the node that it has all there is.
        if not batch and type_url in self._greeted:
            return None
        self._greeted.add(type_url)
        nonce = self._publisher.begin_response(type_url)
        self._sent[type_url][nonce] = _Sent(feed.revision if feed.is_drained else 0, self._clock())
        self._count(type_url, batch)
        return encode_response(type_url, nonce, (batch.encoded,), batch.removed)

    def _count(self, type_url: str, batch: Batch) -> None:
        pushes, resources = self._counters[type_url]
        pushes.inc()
        resources.inc(len(batch.sent) + len(batch.removed))

    def _take(self, event: Event) -> None:
        if isinstance(event, Unserved):
            if event.type_url not in self._unserved and len(self._unserved) < _UNSERVED_SAID:
                self._unserved.add(event.type_url)
                log.warning("node %s asks for %.200r, which is not served here", self.caller.name, event.type_url)
            return
        feed = self._feeds[event.type_url]
        match event:
            case Subscribed(names=names, is_first=is_first, held=held):
                if is_first:
                    feed.start(held)
                else:
                    feed.widen(names)
            case Unsubscribed(names=names):
                feed.narrow(names)
            case Acked(nonce=nonce):
                self._refused.discard(event.type_url)
                self._answered(event.type_url, nonce)
            case Nacked(nonce=nonce, reason=reason):
                self.nacks += 1
                self._refused.add(event.type_url)
                self._metrics.nacks.labels(_WORDS[event.type_url]).inc()
                log.warning("node %s refused resources of %s: %s", self.caller.name, event.type_url, reason[:2000])
                self._answered(event.type_url, nonce)

    def _answered(self, type_url: str, nonce: str) -> None:
        sent = self._sent[type_url].pop(nonce)
        self._settled[type_url] = max(self._settled[type_url], sent.revision)
        self._metrics.convergence_s.observe(self._clock() - sent.at)
        self._hub.note_progress()


ServicerContext = grpc.aio.ServicerContext[bytes, bytes]


class DeltaAds:
    """The gRPC method: a stream from its first request to its end."""

    def __init__(self, hub: Hub, gate: Gate, metrics: Metrics, closing: Closing) -> None:
        self._hub = hub
        self._gate = gate
        self._metrics = metrics
        self._closing = closing
        self._synced = asyncio.Event()

    def open_for_nodes(self) -> None:
        """Start to answer: the first full set of objects is in the store.

        Before that an answer would say that what is not loaded yet is gone.
        """
        self._synced.set()

    async def serve(self, requests: AsyncIterator[bytes], context: ServicerContext) -> None:
        """Serve one stream until the node leaves or breaks the protocol."""
        caller = await self._gate.admit(context, Right.CONFIGURATION)
        await self._closing.run_until(self._synced.wait())
        stream = Stream(caller, self._hub, self._metrics)
        self._hub.join(stream)
        log.info("node %s connected from %s", caller.name, context.peer())
        try:
            async with asyncio.TaskGroup() as group:
                writer = group.create_task(self._write(stream, context), name=f"ads-write-{caller.name}")
                fault = await self._closing.run_until(self._read(stream, requests), self._closing.stream_life_s())
                writer.cancel()
        finally:
            self._hub.leave(stream)
            log.info("node %s disconnected", caller.name)
        if self._closing.is_set:
            await context.abort(grpc.StatusCode.UNAVAILABLE, SENTENCE)
        if fault is not None:
            log.warning("node %s: stream ended: %s", caller.name, fault)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, fault)

    @staticmethod
    async def _read(stream: Stream, requests: AsyncIterator[bytes]) -> str | None:
        """Read until the node closes; what it did wrong, or None."""
        try:
            async for data in requests:
                stream.receive(DeltaDiscoveryRequest.FromString(data))
        except (RemoteProtocolError, DecodeError) as error:
            return str(error)
        return None

    async def _write(self, stream: Stream, context: ServicerContext) -> None:
        while True:
            await stream.wait()
            while (response := stream.next_response()) is not None:
                await context.write(response)
            self._hub.note_progress()
