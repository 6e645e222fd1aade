"""Delta xDS from the controller: one stream, connected again whenever it ends.

What was learned stays in force while the controller is away. The protocol itself is `mesh.xds.Subscriber`; here is the
transport, the backoff and the node's name.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import grpc
import grpc.aio

from mesh import xds
from mesh.channel import CredentialFault
from mesh.wire import discovery_pb2
from ztunnel.control.link import ControllerLink

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.02
BACKOFF_MAX_S = 15.0

ENDS = ("connection_error", "error", "reconnect", "complete")

# Faults of the way there and of our own credentials.
_NOT_OVER_TYPES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)

# The stubs do not name it.
_END: Any = cast(Any, grpc.aio).EOF

Apply = Callable[[xds.Update], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """How this process names itself to the control plane."""

    node: str
    pod_name: str
    pod_namespace: str
    instance_ip: str
    cluster_id: str

    def message(self) -> discovery_pb2.Node:
        """The `node` of the first request of each type."""
        node = discovery_pb2.Node(
            id=f"ztunnel~{self.instance_ip}~{self.pod_name}.{self.pod_namespace}~{self.pod_namespace}.svc.cluster.local"
        )
        node.metadata.update(
            {
                "NAME": self.pod_name,
                "NAMESPACE": self.pod_namespace,
                "INSTANCE_IPS": self.instance_ip,
                "NODE_NAME": self.node,
                "CLUSTER_ID": self.cluster_id,
            }
        )
        return node


class AdsClient:
    """Keeps the stream; `apply` is called for each response, from the event loop, and says what it refuses.

    `extra` are types that not every control plane knows, each with what takes it. A control plane may leave them
    unanswered. One that ends the stream with an error before it has ever answered them is asked for the others only,
    until a stream of that kind has ended too: then it may be another control plane.
    """

    def __init__(
        self, node: NodeIdentity, link: ControllerLink, apply: Apply, extra: Mapping[str, Apply] | None = None
    ) -> None:
        self._extra = dict(extra or {})
        types = [xds.ADDRESS_TYPE, xds.AUTHORIZATION_TYPE]
        self._subscriber = xds.Subscriber(node.message(), types, extra=tuple(self._extra))
        self._with_extra = True
        self._link = link
        self._apply = apply
        self._backoff = BACKOFF_FIRST_S
        self.synced = asyncio.Event()  # both types were answered at least once
        self.connected = False
        self.last_error = "not connected yet"
        self.terminations = dict.fromkeys(ENDS, 0)
        self.messages: dict[str, int] = {}
        self.message_bytes: dict[str, int] = {}
        self._refused: dict[str, dict[str, str]] = {}

    async def run(self) -> None:
        """Stream for as long as the task lives."""
        while True:
            try:
                await self._stream_once()
                self._ended("complete", "the controller closed the stream")
                self._with_extra = True
            except grpc.aio.AioRpcError as error:
                kind = "connection_error" if error.code() is grpc.StatusCode.UNAVAILABLE else "error"
                self._choose_types(error.code())
                self._ended(kind, f"{error.code().name}: {error.details()}")
            except asyncio.InvalidStateError:  # what grpc.aio says of a write on a call that has ended meanwhile
                self._ended("connection_error", "the stream ended")
            except (xds.RemoteProtocolError, CredentialFault) as error:
                self._ended("error", str(error))
            await asyncio.sleep(self._backoff * random.uniform(0.8, 1.2))
            self._backoff = min(self._backoff * 2, BACKOFF_MAX_S)

    def _ended(self, kind: str, sentence: str) -> None:
        self.connected = False
        self.last_error = sentence
        self.terminations[kind] += 1
        level = logging.INFO if kind == "complete" else logging.WARNING  # streams are ended from time to time
        log.log(level, "controller stream ended: %s; next try in %.2f s", sentence, self._backoff)

    def _choose_types(self, status: grpc.StatusCode) -> None:
        """After a fault: which types the next stream asks for."""
        if status in _NOT_OVER_TYPES:
            self._with_extra = True
        elif self._with_extra and self._extra and not any(map(self._subscriber.is_answered, self._extra)):
            log.warning("the next stream asks for nothing that only Culvert's controller knows")
            self._with_extra = False

    async def _stream_once(self) -> None:
        self._link.refresh()
        method = self._link.channel().stream_stream(
            xds.DELTA_METHOD,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=None,
        )
        # The stubs know only calls with a request iterator.
        call: Any = cast(Any, method)(metadata=tuple(self._link.metadata()))
        try:
            for request in self._subscriber.open(with_extra=self._with_extra):
                await call.write(request)
            while (raw := await call.read()) is not _END:
                await call.write(self._receive(raw))
        finally:
            call.cancel()

    def _receive(self, raw: bytes) -> discovery_pb2.DeltaDiscoveryRequest:
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(raw)
        if not self.connected:
            self.connected = True
            self._backoff = BACKOFF_FIRST_S
            log.info("controller stream established")
        update = self._subscriber.receive(response)
        self.messages[update.type_url] = self.messages.get(update.type_url, 0) + 1
        self.message_bytes[update.type_url] = self.message_bytes.get(update.type_url, 0) + len(raw)
        refused = self._extra.get(update.type_url, self._apply)(update)
        self._say_refused(update, {**update.refused, **refused})
        answer = self._subscriber.answer(update, refused)
        if self._subscriber.is_synced:
            self.synced.set()
        return answer

    def _say_refused(self, update: xds.Update, refused: Mapping[str, str]) -> None:
        """Once per fault: a resource that is refused comes again with each new stream."""
        told = self._refused.setdefault(update.type_url, {})
        for name in [*(changed.name for changed in update.changed), *update.removed]:
            if name not in refused:
                told.pop(name, None)
        for name, reason in refused.items():
            if told.get(name) != reason:
                log.warning("resource %s refused: %s", name, reason)
        told.update(refused)
