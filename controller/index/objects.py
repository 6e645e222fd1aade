"""The cluster's objects, reduced to the fields that the mesh is made of.

These are the only forms of Kubernetes objects above the sources. All are immutable and compare by value, so a change
that touches no field of theirs is no change. Addresses are packed (4 or 16 bytes). A key is `namespace/name`, or the
name of an object that has no namespace.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from mesh.wire.workload_pb2 import AppProtocol

Labels = Mapping[str, str]


class Kind(Enum):
    """What the index holds; the value is the Kubernetes kind."""

    NAMESPACE = "Namespace"
    NODE = "Node"
    POD = "Pod"
    SERVICE_ACCOUNT = "ServiceAccount"
    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    AUTHORIZATION_POLICY = "AuthorizationPolicy"
    PEER_AUTHENTICATION = "PeerAuthentication"
    GATEWAY = "Gateway"
    HTTP_ROUTE = "HTTPRoute"
    GRPC_ROUTE = "GRPCRoute"
    TLS_ROUTE = "TLSRoute"
    TCP_ROUTE = "TCPRoute"


class Distribution(Enum):
    """Which endpoints a service prefers."""

    ANY = ""
    SAME_ZONE = "PreferSameZone"
    SAME_NODE = "PreferSameNode"


class Mode(Enum):
    """What a PeerAuthentication demands of connections."""

    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Action(Enum):
    """What an AuthorizationPolicy does with what it matches."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; its annotation may choose the distribution of services that choose none."""

    name: str
    labels: Labels
    distribution: Distribution | None = None

    @property
    def key(self) -> str:
        """Its name."""
        return self.name


@dataclass(frozen=True, slots=True)
class Node:
    """A node and where it stands."""

    name: str
    region: str = ""
    zone: str = ""
    subzone: str = ""

    @property
    def key(self) -> str:
        """Its name."""
        return self.name


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Known so that a manifest of it is not a surprise; nothing is made of it."""

    namespace: str
    name: str

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that was scheduled; one without addresses is known but not announced."""

    namespace: str
    name: str
    labels: Labels
    uid: str = ""
    node: str = ""
    service_account: str = "default"
    addresses: tuple[bytes, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()  # named TCP container ports
    workload_name: str = ""
    is_ready: bool = False
    is_terminal: bool = False  # Succeeded or Failed: its addresses are no longer its own
    is_terminating: bool = False
    is_host_network: bool = False
    is_marked_captured: bool = False  # by Istio's CNI annotation
    is_annotated_captured: bool = False  # by our agent's annotation, for controllers that it is not connected to
    speaks_hbone: bool = False  # by Istio's tunnel label

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service; `target_name` names a container port and then `target` is 0."""

    name: str
    port: int
    target: int
    target_name: str = ""
    app_protocol: AppProtocol = AppProtocol.UNKNOWN


@dataclass(frozen=True, slots=True)
class Service:
    """A service; without a selector its endpoints come from EndpointSlices."""

    namespace: str
    name: str
    ports: tuple[ServicePort, ...] = ()
    vips: tuple[bytes, ...] = ()
    selector: Labels | None = None
    is_external: bool = False  # type ExternalName: DNS only
    is_node_local: bool = False  # internalTrafficPolicy: Local
    distribution: Distribution | None = None
    publishes_not_ready: bool = False
    families: tuple[int, ...] = (4,)

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of a slice; with `pod` set it is that pod (key), which is known in full."""

    address: str
    is_ready: bool = True
    pod: str = ""


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Endpoints of a service (key) that its selector does not find."""

    namespace: str
    name: str
    service: str
    ports: tuple[tuple[str, int], ...] = ()  # service port name, target port
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Match:
    """One `source` or `operation` of a rule, or one `when`: every field that is set must hold.

    `l7` lists the fields that only a waypoint could check.
    """

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[tuple[str, str], ...] = ()
    not_service_accounts: tuple[tuple[str, str], ...] = ()
    source_blocks: tuple[tuple[bytes, int], ...] = ()
    not_source_blocks: tuple[tuple[bytes, int], ...] = ()
    destination_blocks: tuple[tuple[bytes, int], ...] = ()
    not_destination_blocks: tuple[tuple[bytes, int], ...] = ()
    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()
    l7: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Any of `to`, and any of `sources`, and all of `when`."""

    to: tuple[Match, ...] = ()
    sources: tuple[Match, ...] = ()
    when: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """An AuthorizationPolicy as written; what of it is enforced is the translation's matter."""

    namespace: str
    name: str
    action: Action = Action.ALLOW
    selector: Labels | None = None
    targets: tuple[str, ...] = ()  # "kind name" of each target
    is_dry_run: bool = False
    rules: tuple[Rule, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """A PeerAuthentication as written; of several at one level the oldest counts."""

    namespace: str
    name: str
    selector: Labels | None = None
    mode: Mode = Mode.UNSET
    ports: tuple[tuple[int, Mode], ...] = ()
    created: str = ""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    @property
    def age_order(self) -> tuple[bool, str, str]:
        """Sorts the oldest first; one without a creation time counts as young, names break ties."""
        return (not self.created, self.created, self.name)


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener of a Gateway."""

    name: str
    port: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Gateway of the Gateway API; a waypoint is one of a class of its own."""

    namespace: str
    name: str
    class_name: str
    labels: Labels
    listeners: tuple[Listener, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """Another object that a route names; `port` 0 is any, `section` empty is all of it."""

    kind: str
    namespace: str
    name: str
    port: int = 0
    section: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the Gateway API: whose traffic it is about and where it may go; not what it says of requests."""

    kind: Kind
    namespace: str
    name: str
    parents: tuple[Reference, ...] = ()
    hostnames: tuple[str, ...] = ()
    backends: tuple[Reference, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


Object = (
    Namespace
    | Node
    | Pod
    | ServiceAccount
    | Service
    | EndpointSlice
    | AuthorizationPolicy
    | PeerAuthentication
    | Gateway
    | Route
)

GATEWAY_KINDS = frozenset({Kind.GATEWAY, Kind.HTTP_ROUTE, Kind.GRPC_ROUTE, Kind.TLS_ROUTE, Kind.TCP_ROUTE})
NAMESPACED = frozenset(Kind) - {Kind.NAMESPACE, Kind.NODE}


@dataclass(frozen=True, slots=True)
class Change:
    """An object as it is now; None if it is gone."""

    kind: Kind
    key: str
    object: Object | None


def selects(selector: Labels, labels: Labels) -> bool:
    """Every label of the selector is there with its value; an empty selector selects everything."""
    return all(labels.get(name) == value for name, value in selector.items())
