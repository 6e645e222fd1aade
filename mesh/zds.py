"""ZDS, how a node agent hands pods to ztunnel: the packets and the order in which they may come.

Sans-IO: bytes in, messages out; mesh/seqpacket.py moves the packets. One protobuf per SOCK_SEQPACKET packet, no length
prefix. ztunnel connects and says hello; then the agent asks and ztunnel acknowledges, strictly one at a time. First
comes the snapshot: an Add (or Keep) for every pod, ended by SnapshotSent, upon which ztunnel forgets pods that were not
named. Afterwards only Add and Del. Add alone carries a descriptor, exactly one: the pod's network namespace. Who
receives a packet owns its descriptors; when `receive` raises, the caller still owns and closes them.

Interoperates with `istio.workload.zds` of Istio's CNI agent and ztunnel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from google.protobuf.message import DecodeError

from mesh.wire import zds_pb2 as wire

# Istio's ztunnel reads into a buffer of this size: a longer packet would arrive cut.
MAX_PACKET_BYTES = 1024

# A request that is not answered in this time has lost its peer (Istio's agent waits as long).
REQUEST_TIMEOUT_S = 5.0

# An acknowledgement that contains these words says that the pod itself listens on a mesh port. It is the text of
# EADDRINUSE, so that Istio's ztunnel is understood too.
PORT_IN_USE = "Address already in use"


class ZdsError(Exception):
    """A fault of the protocol; the connection cannot go on."""


class RemoteProtocolError(ZdsError):
    """The peer sent what it must not send here."""


class LocalProtocolError(ZdsError):
    """We tried to send what must not be sent here; a fault of our own."""


@dataclass(frozen=True, slots=True)
class Hello:
    """ztunnel's first packet; the version is always 1."""

    version: int = wire.V1


@dataclass(frozen=True, slots=True)
class Add:
    """Serve this pod; the descriptor of its network namespace goes along. Idempotent."""

    uid: str  # Kubernetes pod uid, which is not the uid of the xDS workload
    namespace: str
    name: str
    service_account: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Go on serving this pod, which was there before; in the snapshot only."""

    uid: str


@dataclass(frozen=True, slots=True)
class Del:
    """Stop serving this pod."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """The snapshot is complete: forget pods that were not named."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to one request; an empty error means done."""

    error: str = ""


M = TypeVar("M", wire.ZdsHello, wire.WorkloadRequest, wire.WorkloadResponse)
Request = Add | Keep | Del | SnapshotSent
Message = Hello | Request | Ack


class Role(Enum):
    """Which end of the connection this is."""

    AGENT = auto()
    ZTUNNEL = auto()


class State(Enum):
    """What both ends are waiting for."""

    HELLO = auto()
    SNAPSHOT = auto()  # the agent may ask, the snapshot is not complete
    SNAPSHOT_ASKED = auto()
    SNAPSHOT_ENDING = auto()  # SnapshotSent is not acknowledged yet
    LIVE = auto()
    LIVE_ASKED = auto()


_TRANSITIONS: dict[tuple[State, type[Message]], State] = {
    (State.HELLO, Hello): State.SNAPSHOT,
    (State.SNAPSHOT, Add): State.SNAPSHOT_ASKED,
    (State.SNAPSHOT, Keep): State.SNAPSHOT_ASKED,
    (State.SNAPSHOT, Del): State.SNAPSHOT_ASKED,
    (State.SNAPSHOT, SnapshotSent): State.SNAPSHOT_ENDING,
    (State.SNAPSHOT_ASKED, Ack): State.SNAPSHOT,
    (State.SNAPSHOT_ENDING, Ack): State.LIVE,
    (State.LIVE, Add): State.LIVE_ASKED,
    (State.LIVE, Del): State.LIVE_ASKED,
    (State.LIVE_ASKED, Ack): State.LIVE,
}


class Connection:
    """One ZDS connection, seen from either end."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.HELLO

    @property
    def is_live(self) -> bool:
        """Whether the snapshot is complete and acknowledged."""
        return self.state in (State.LIVE, State.LIVE_ASKED)

    def send(self, message: Message) -> bytes:
        """The packet for a message; raises LocalProtocolError when its turn has not come or it is too long."""
        if isinstance(message, Hello | Ack) is not (self.role is Role.ZTUNNEL):
            raise LocalProtocolError(f"{_name(message)} is not for the {self.role.name.lower()} to send")
        packet = encode(message)
        following = _TRANSITIONS.get((self.state, type(message)))
        if following is None:
            raise LocalProtocolError(f"{_name(message)} cannot be sent in state {self.state.name.lower()}")
        self.state = following
        return packet

    def receive(self, packet: bytes, descriptors: Sequence[int] = ()) -> Message:
        """The message of a packet; raises RemoteProtocolError, after which the connection must be closed."""
        message = self._decode(packet)
        wanted = 1 if isinstance(message, Add) else 0
        if len(descriptors) != wanted:
            raise RemoteProtocolError(f"{_name(message)} came with {len(descriptors)} descriptors, not {wanted}")
        following = _TRANSITIONS.get((self.state, type(message)))
        if following is None:
            raise RemoteProtocolError(f"{_name(message)} came in state {self.state.name.lower()}")
        self.state = following
        return message

    def _decode(self, packet: bytes) -> Message:
        if self.role is Role.ZTUNNEL:
            return decode_request(packet)
        return decode_hello(packet) if self.state is State.HELLO else decode_ack(packet)


def encode(message: Message) -> bytes:
    """The packet of a message; the text of an error is cut to fit, anything else too long raises LocalProtocolError."""
    packet = _to_wire(message)
    if len(packet) > MAX_PACKET_BYTES:
        raise LocalProtocolError(f"{_name(message)} takes {len(packet)} bytes, a packet may have {MAX_PACKET_BYTES}")
    return packet


def decode_hello(packet: bytes) -> Hello:
    """Read ztunnel's first packet; raises RemoteProtocolError for another version."""
    version = _parse(wire.ZdsHello(), packet).version
    if version != wire.V1:
        raise RemoteProtocolError(f"ztunnel speaks ZDS version {version}, this agent speaks 1")
    return Hello(version)


def decode_request(packet: bytes) -> Request:
    """Read what an agent asks; raises RemoteProtocolError."""
    request = _parse(wire.WorkloadRequest(), packet)
    kind = request.WhichOneof("payload")
    if kind == "add":
        info = request.add.workload_info
        return Add(_uid(request.add.uid), info.namespace, info.name, info.service_account)
    if kind == "keep":
        return Keep(_uid(request.keep.uid))
    if kind == "del":
        return Del(_uid(getattr(request, "del").uid))
    if kind == "snapshot_sent":
        return SnapshotSent()
    raise RemoteProtocolError("a request without a payload that is known here")


def decode_ack(packet: bytes) -> Ack:
    """Read ztunnel's answer; raises RemoteProtocolError."""
    response = _parse(wire.WorkloadResponse(), packet)
    if response.WhichOneof("payload") != "ack":
        raise RemoteProtocolError("an answer that is no acknowledgement")
    return Ack(response.ack.error)


def _to_wire(message: Message) -> bytes:
    match message:
        case Hello(version):
            return wire.ZdsHello(version=wire.Version.Name(version)).SerializeToString()
        case Ack(error):
            # "0a LL LL 0a LL LL": tags and lengths around the text take six bytes
            text = error.encode()[: MAX_PACKET_BYTES - 6].decode(errors="ignore")
            return wire.WorkloadResponse(ack=wire.Ack(error=text)).SerializeToString()
        case Add(uid, namespace, name, service_account):
            info = wire.WorkloadInfo(name=name, namespace=namespace, service_account=service_account)
            return wire.WorkloadRequest(add=wire.AddWorkload(uid=uid, workload_info=info)).SerializeToString()
        case Keep(uid):
            return wire.WorkloadRequest(keep=wire.KeepWorkload(uid=uid)).SerializeToString()
        case Del(uid):
            request = wire.WorkloadRequest()
            getattr(request, "del").uid = uid  # `del` is a word of Python
            return request.SerializeToString()
        case SnapshotSent():
            return wire.WorkloadRequest(snapshot_sent=wire.SnapshotSent()).SerializeToString()


def _parse(into: M, packet: bytes) -> M:
    if len(packet) > MAX_PACKET_BYTES:
        raise RemoteProtocolError(f"a packet of {len(packet)} bytes, {MAX_PACKET_BYTES} are allowed")
    try:
        into.ParseFromString(packet)
    except DecodeError as error:
        raise RemoteProtocolError(f"a packet that is no {type(into).__name__}: {error}") from error
    return into


def _uid(text: str) -> str:
    if not text:
        raise RemoteProtocolError("a request that names no pod uid")
    return text


def _name(message: Message) -> str:
    return type(message).__name__
