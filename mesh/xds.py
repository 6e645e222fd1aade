"""Delta xDS (the incremental protocol of envoy.service.discovery.v3) without a socket: both ends of one stream.

`Subscriber` is the node's end, `Publisher` the control plane's. Each turns messages into events and intentions into
messages; neither knows a transport, a clock or what a resource means.

Theory of operation. Every resource type on a stream is a flow of its own. A flow starts with the subscriber's first
request, which names what it wants (nothing at all, or `*`, means everything) and what it still has from earlier streams
(`initial_resource_versions`), so that a reconnect costs only what changed in between. The publisher answers with
responses that carry new and removed resources under a nonce. Each response is answered by a request with that nonce: an
ACK, or, with `error_detail`, a NACK that names the resources which were refused; the others of a refused response are
applied all the same. Requests without a nonce change the subscription. A publisher keeps at most `window` responses
unanswered per flow, so a slow node gets fewer and fresher ones instead of a queue.

Both ends drive the same table of phases, `TRANSITIONS`; what is not in it is a protocol error of whoever did it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"
# Culvert's own: which roots are trusted. Only Culvert's ends know it.
ROOTS_TYPE = "type.googleapis.com/culvert.trust.v1.Roots"

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
METHOD = "DeltaAggregatedResources"
DELTA_METHOD = f"/{SERVICE}/{METHOD}"

EVERYTHING = "*"

# google.rpc.Code.INVALID_ARGUMENT: what a NACK says about the refused resources.
_INVALID_ARGUMENT = 3

# Tag of `DeltaDiscoveryResponse.resources` (field 2, length-delimited): what frames an encoded resource.
_RESOURCES_TAG = b"\x12"


class RemoteProtocolError(Exception):
    """The peer did what the protocol does not allow; the stream is of no more use."""


class LocalProtocolError(Exception):
    """We did what the protocol does not allow: a bug on this side."""


class Phase(Enum):
    """Where one resource type stands on one stream."""

    UNASKED = auto()
    ASKED = auto()  # subscribed, nothing sent yet
    PENDING = auto()  # at least one response is unanswered
    SYNCED = auto()  # every response is answered


class Step(Enum):
    """What moves a flow from phase to phase."""

    REQUEST = auto()  # a subscription or a change of it
    RESPONSE = auto()
    ANSWER = auto()  # ACK or NACK; others are still unanswered
    LAST_ANSWER = auto()  # ACK or NACK of the last unanswered response


TRANSITIONS: Mapping[tuple[Phase, Step], Phase] = {
    (Phase.UNASKED, Step.REQUEST): Phase.ASKED,
    (Phase.ASKED, Step.REQUEST): Phase.ASKED,
    (Phase.ASKED, Step.RESPONSE): Phase.PENDING,
    (Phase.PENDING, Step.REQUEST): Phase.PENDING,
    (Phase.PENDING, Step.RESPONSE): Phase.PENDING,
    (Phase.PENDING, Step.ANSWER): Phase.PENDING,
    (Phase.PENDING, Step.LAST_ANSWER): Phase.SYNCED,
    (Phase.SYNCED, Step.REQUEST): Phase.SYNCED,
    (Phase.SYNCED, Step.RESPONSE): Phase.PENDING,
}


class _Flow:
    """Phase and unanswered nonces of one type; `fault` is the exception of a step that is not in the table."""

    __slots__ = ("fault", "phase", "type_url", "unanswered")

    def __init__(self, type_url: str, fault: type[Exception]) -> None:
        self.type_url = type_url
        self.phase = Phase.UNASKED
        self.unanswered: list[str] = []
        self.fault = fault

    def step(self, step: Step) -> None:
        following = TRANSITIONS.get((self.phase, step))
        if following is None:
            raise self.fault(f"{self.type_url}: {step.name.lower()} is not possible while {self.phase.name.lower()}")
        self.phase = following

    def respond(self, nonce: str) -> None:
        self.step(Step.RESPONSE)
        self.unanswered.append(nonce)

    def answer(self, nonce: str) -> None:
        self.unanswered.remove(nonce)
        self.step(Step.ANSWER if self.unanswered else Step.LAST_ANSWER)


# --- the node's end ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Changed:
    """A new or changed resource; `value` is the encoded message of the update's type."""

    name: str
    version: str
    value: bytes
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """What one response changes. Apply it, then give it back to `Subscriber.answer`."""

    type_url: str
    nonce: str
    changed: tuple[Changed, ...]
    removed: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)  # resources of another type than the response's


class Subscriber:
    """The node's end of a stream, and what it holds across streams.

    It remembers the version of every resource that was applied; a resource that was refused is not remembered and
    comes again after a reconnect. Each type is subscribed as a whole. Not every control plane knows the `extra` types:
    nobody waits for their answer, and a stream may do without.
    """

    def __init__(self, node: Node, types: Sequence[str], extra: Sequence[str] = ()) -> None:
        self._node = node
        self._extra = tuple(extra)
        self._types = (*types, *extra)
        self._versions: dict[str, dict[str, str]] = {type_url: {} for type_url in self._types}
        self._flows: dict[str, _Flow] = {}
        self._synced: set[str] = set()

    def open(self, *, with_extra: bool = True) -> list[DeltaDiscoveryRequest]:
        """The first requests of a new stream, one per type; whatever stood open on an earlier stream is forgotten."""
        asked = [type_url for type_url in self._types if with_extra or type_url not in self._extra]
        self._flows = {type_url: _Flow(type_url, RemoteProtocolError) for type_url in asked}
        requests = []
        for type_url, flow in self._flows.items():
            flow.step(Step.REQUEST)
            request = DeltaDiscoveryRequest(node=self._node, type_url=type_url)
            request.initial_resource_versions.update(self._versions[type_url])
            requests.append(request)
        return requests

    def receive(self, response: DeltaDiscoveryResponse) -> Update:
        """What a response changes; raises RemoteProtocolError for one that nobody asked for."""
        flow = self._flows.get(response.type_url)
        if flow is None:
            raise RemoteProtocolError(f"response of type {response.type_url!r}, which was not subscribed")
        if not response.nonce or response.nonce in flow.unanswered:
            raise RemoteProtocolError(f"{response.type_url}: nonce {response.nonce!r} is empty or used twice")
        flow.respond(response.nonce)
        alien = {
            resource.name: f"type {resource.resource.type_url!r} in a response of {response.type_url!r}"
            for resource in response.resources
            if resource.resource.type_url != response.type_url
        }
        changed = tuple(
            Changed(resource.name, resource.version, resource.resource.value, tuple(resource.aliases))
            for resource in response.resources
            if resource.name not in alien
        )
        return Update(response.type_url, response.nonce, changed, tuple(response.removed_resources), alien)

    def answer(self, update: Update, refused: Mapping[str, str] | None = None) -> DeltaDiscoveryRequest:
        """The ACK of an applied update, or the NACK that names what was refused and why (name -> reason)."""
        flow = self._flows.get(update.type_url)
        if flow is None or update.nonce not in flow.unanswered:
            raise LocalProtocolError(f"{update.type_url}: answer to nonce {update.nonce!r}, which is not open")
        flow.answer(update.nonce)
        self._synced.add(update.type_url)
        faults = {**update.refused, **(refused or {})}
        self._remember(update, faults)
        request = DeltaDiscoveryRequest(type_url=update.type_url, response_nonce=update.nonce)
        if faults:
            request.error_detail.code = _INVALID_ARGUMENT
            request.error_detail.message = "; ".join(f"{name}: {reason}" for name, reason in sorted(faults.items()))
        return request

    @property
    def is_synced(self) -> bool:
        """Every type was answered at least once, on this stream or an earlier one: there is something to serve."""
        return self._synced.issuperset(set(self._types).difference(self._extra))

    def is_answered(self, type_url: str) -> bool:
        """The type was answered at least once, on this stream or an earlier one."""
        return type_url in self._synced

    def versions(self, type_url: str) -> Mapping[str, str]:
        """Name and version of each resource that is held."""
        return self._versions[type_url]

    def _remember(self, update: Update, faults: Mapping[str, str]) -> None:
        versions = self._versions[update.type_url]
        for resource in update.changed:
            if resource.name not in faults:
                versions[resource.name] = resource.version
        for name in faults:
            # Named without a version: it is sent again after a reconnect, and its removal is told.
            versions.setdefault(name, "")
        for name in update.removed:
            versions.pop(name, None)


# --- the control plane's end ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A flow began or wants more. `held` is what the node has; it is non-empty only with the first request."""

    type_url: str
    names: tuple[str, ...]
    is_first: bool
    held: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The node wants less."""

    type_url: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Acked:
    """A response was applied."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Nacked:
    """A response was applied but for the resources that `reason` names."""

    type_url: str
    nonce: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unserved:
    """The node asked for a type that is not served here. It gets no answer, and its other types are not disturbed."""

    type_url: str


Event = Subscribed | Unsubscribed | Acked | Nacked | Unserved


@dataclass(slots=True)
class Subscription:
    """What a node wants of one type."""

    is_wildcard: bool = False
    names: set[str] = field(default_factory=set)


class Publisher:
    """The control plane's end of one stream."""

    def __init__(self, types: Sequence[str], *, window: int = 4, max_names: int = 100_000) -> None:
        self._flows = {type_url: _Flow(type_url, RemoteProtocolError) for type_url in types}
        self._subscriptions = {type_url: Subscription() for type_url in types}
        self._window = window
        self._max_names = max_names
        self._last_nonce = 0
        self.node: Node | None = None

    def receive(self, request: DeltaDiscoveryRequest) -> list[Event]:
        """What a request means; raises RemoteProtocolError for one that is not possible here."""
        if self.node is None:
            if not request.HasField("node"):
                raise RemoteProtocolError("the first request of a stream must carry its node")
            self.node = request.node
        flow = self._flows.get(request.type_url)
        if flow is None:
            return [Unserved(request.type_url)]
        events: list[Event] = []
        if request.response_nonce:
            events += self._answered(flow, request)
        if self._is_subscription(flow, request):
            events += self._subscribed(flow, request)
        return events

    def subscription(self, type_url: str) -> Subscription:
        """What the node wants of a type now."""
        return self._subscriptions[type_url]

    def is_asked(self, type_url: str) -> bool:
        """The node has subscribed to the type on this stream."""
        return self._flows[type_url].phase is not Phase.UNASKED

    def is_settled(self, type_url: str) -> bool:
        """No response of the type is unanswered."""
        return not self._flows[type_url].unanswered

    def may_send(self, type_url: str) -> bool:
        """The node asked for the type and has answered enough of what it got."""
        return self.is_asked(type_url) and len(self._flows[type_url].unanswered) < self._window

    def begin_response(self, type_url: str) -> str:
        """The nonce of a response that is now being sent."""
        if not self.may_send(type_url):
            raise LocalProtocolError(f"{type_url}: a response that the node cannot take yet")
        self._last_nonce += 1
        nonce = str(self._last_nonce)
        self._flows[type_url].respond(nonce)
        return nonce

    def _answered(self, flow: _Flow, request: DeltaDiscoveryRequest) -> list[Event]:
        nonce = request.response_nonce
        if nonce not in flow.unanswered:
            if flow.phase is Phase.UNASKED:
                return []  # a nonce of an earlier stream, sent along with the first request of this one
            raise RemoteProtocolError(f"{flow.type_url}: nonce {nonce!r} is not one that waits for an answer")
        flow.answer(nonce)
        if request.HasField("error_detail"):
            return [Nacked(flow.type_url, nonce, request.error_detail.message)]
        return [Acked(flow.type_url, nonce)]

    @staticmethod
    def _is_subscription(flow: _Flow, request: DeltaDiscoveryRequest) -> bool:
        names = request.resource_names_subscribe or request.resource_names_unsubscribe
        return flow.phase is Phase.UNASKED or bool(names)

    def _subscribed(self, flow: _Flow, request: DeltaDiscoveryRequest) -> list[Event]:
        wanted = self._subscriptions[flow.type_url]
        is_first = flow.phase is Phase.UNASKED
        flow.step(Step.REQUEST)
        new = set(request.resource_names_subscribe)
        gone = set(request.resource_names_unsubscribe)
        if EVERYTHING in new or (is_first and not new):
            wanted.is_wildcard = True
        if EVERYTHING in gone:
            wanted.is_wildcard = False
        added = tuple(sorted(new - {EVERYTHING} - wanted.names))
        dropped = tuple(sorted(wanted.names & gone))
        wanted.names.update(added)
        wanted.names.difference_update(dropped)
        if len(wanted.names) > self._max_names:
            raise RemoteProtocolError(f"{flow.type_url}: more than {self._max_names} names subscribed")
        events: list[Event] = []
        if is_first or added or EVERYTHING in new:
            held = dict(request.initial_resource_versions) if is_first else {}
            events.append(Subscribed(flow.type_url, added, is_first, held))
        if dropped or EVERYTHING in gone:
            events.append(Unsubscribed(flow.type_url, dropped))
        return events


def encode_resource(type_url: str, name: str, version: str, value: bytes, aliases: Sequence[str] = ()) -> bytes:
    """One resource as the bytes that a response carries: encoded once, sent to every node."""
    resource = Resource(name=name, version=version, aliases=aliases)
    resource.resource.type_url = type_url
    resource.resource.value = value
    body = resource.SerializeToString(deterministic=True)
    return _RESOURCES_TAG + _varint(len(body)) + body


def encode_response(type_url: str, nonce: str, resources: Iterable[bytes], removed: Sequence[str]) -> bytes:
    """A response made of resources that `encode_resource` made: protobuf fields may simply be joined."""
    head = DeltaDiscoveryResponse(type_url=type_url, nonce=nonce, removed_resources=removed)
    return head.SerializeToString() + b"".join(resources)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
