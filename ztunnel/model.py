"""What a ztunnel knows of the mesh: workloads, services and policies, as values.

Everything here is immutable and says nothing of where it came from; `ztunnel/parse.py` makes it from wire messages.
Addresses have 16 bytes (see mesh.addresses). Objects refer to each other by name; numbers are the store's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple
from urllib.parse import quote

from mesh.identity import Identity

HBONE_PORT = 15008

_V4_PREFIX = bytes(10) + b"\xff\xff"

# What may stand in a baggage value as it is (W3C Baggage, baggage-octet), short of "%".
_BAGGAGE_SAFE = "!#$&'()*+-./:<=>?@[]^_`{|}~"


def is_ipv4(ip: bytes) -> bool:
    """Whether 16 bytes are a v4-mapped address."""
    return ip.startswith(_V4_PREFIX)


class NetworkAddress(NamedTuple):
    """An address on one of the mesh's networks."""

    network: str
    ip: bytes


class Prefix(NamedTuple):
    """An address range; IPv4 in mapped form, so 10.0.0.0/8 has length 104."""

    ip: bytes
    length: int


class Vip(NamedTuple):
    """An address range of a service on one of the mesh's networks; the bits behind the length are zero."""

    network: str
    ip: bytes
    length: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a waypoint is found: the name of a service ("namespace/hostname"), or an address."""

    destination: str | NetworkAddress
    port: int = HBONE_PORT

    def __str__(self) -> str:
        if isinstance(self.destination, str):
            return f"{self.destination}:{self.port}"
        return f"{self.destination.network}/{self.destination.ip.hex()}:{self.port}"


class Locality(NamedTuple):
    """Where a workload runs."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod or another thing with addresses that sends or serves."""

    uid: str
    name: str
    namespace: str
    identity: Identity
    addresses: tuple[bytes, ...] = ()
    network: str = ""
    hbone: bool = False
    host_network: bool = False
    healthy: bool = True
    node: str = ""
    cluster_id: str = "Kubernetes"
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: str = "deployment"
    workload_name: str = ""
    locality: Locality = Locality()
    capacity: int = 1
    hostname: str = ""
    native_tunnel: bool = False
    waypoint: Gateway | None = None
    network_gateway: Gateway | None = None
    # "namespace/hostname" -> service port -> target port
    services: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    policies: tuple[str, ...] = ()  # "namespace/name" of those that select it

    @property
    def label(self) -> str:
        """How an explanation names it."""
        return f"workload {self.namespace}/{self.name}" if self.name else f"workload {self.uid}"

    @property
    def baggage(self) -> str:
        """The `baggage` header that names this workload to the other end's telemetry."""
        facts = (
            ("k8s.cluster.name", self.cluster_id),
            ("k8s.namespace.name", self.namespace),
            (f"k8s.{self.workload_type}.name", self.workload_name),
            ("service.name", self.canonical_name),
            ("service.version", self.canonical_revision),
            ("cloud.region", self.locality.region),
            ("cloud.availability_zone", self.locality.zone),
        )
        return ",".join(f"{key}={quote(value, safe=_BAGGAGE_SAFE)}" for key, value in facts if value)


class Scope(IntEnum):
    """How near an endpoint is to have; values of the wire's LoadBalancing.Scope."""

    REGION = 1
    ZONE = 2
    SUBZONE = 3
    NODE = 4
    CLUSTER = 5
    NETWORK = 6


class Mode(IntEnum):
    """What a service's preferences mean; values of the wire's LoadBalancing.Mode."""

    STANDARD = 0
    STRICT = 1
    FAILOVER = 2
    PASSTHROUGH = 3


class Families(IntEnum):
    """Which addresses of an endpoint may be dialled; values of the wire's IPFamilies."""

    ANY = 0
    IPV4 = 1
    IPV6 = 2
    DUAL = 3

    def accepts(self, ip: bytes) -> bool:
        """Whether an address is of a family that the service speaks."""
        if self is Families.IPV4:
            return is_ipv4(ip)
        return not is_ipv4(ip) if self is Families.IPV6 else True


@dataclass(frozen=True, slots=True)
class Service:
    """A hostname with VIPs and ports; workloads say that they serve it."""

    hostname: str
    namespace: str
    vips: tuple[Vip, ...] = ()
    ports: Mapping[int, int] = field(default_factory=dict)  # service port -> target port, 0: the endpoint knows
    subject_names: tuple[str, ...] = ()
    waypoint: Gateway | None = None
    weighted_waypoints: tuple[tuple[Gateway, int], ...] = ()
    preferences: tuple[Scope, ...] = ()
    mode: Mode = Mode.STANDARD
    allow_unhealthy: bool = False
    families: Families = Families.ANY
    canonical: bool = False
    namespace_only: bool = False

    @property
    def name(self) -> str:
        """What workloads and waypoint references call it."""
        return f"{self.namespace}/{self.hostname}"

    @property
    def label(self) -> str:
        """How an explanation names it."""
        return f"service {self.name}"


class PolicyScope(IntEnum):
    """Whom a policy selects; values of the wire's Scope."""

    GLOBAL = 0
    NAMESPACE = 1
    WORKLOAD_SELECTOR = 2


class How(IntEnum):
    """How a string is compared; the numbers of the engine's enum cv_policy_string."""

    EXACT = 0
    PREFIX = 1
    SUFFIX = 2
    PRESENCE = 3


class StringMatch(NamedTuple):
    """One pattern for a string that may be absent."""

    how: How
    value: str = ""


class AccountMatch(NamedTuple):
    """One service account."""

    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions on a connection, all of which must hold; an empty field is no condition."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()  # without spiffe://
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[Prefix, ...] = ()
    not_source_ips: tuple[Prefix, ...] = ()
    destination_ips: tuple[Prefix, ...] = ()
    not_destination_ips: tuple[Prefix, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()
    service_accounts: tuple[AccountMatch, ...] = ()
    not_service_accounts: tuple[AccountMatch, ...] = ()


Clause = tuple[Match, ...]
Rule = tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """An AuthorizationPolicy, or a PeerAuthentication turned into one."""

    local_name: str
    namespace: str
    scope: PolicyScope = PolicyScope.NAMESPACE
    deny: bool = False
    dry_run: bool = False
    rules: tuple[Rule, ...] = ()
    fault: str = ""  # why nobody understands it: this is then its stand-in, see ztunnel/standin.py

    @property
    def name(self) -> str:
        """What workloads, logs and verdicts call it."""
        return f"{self.namespace}/{self.local_name}"

    @property
    def label(self) -> str:
        """How an explanation names it."""
        if self.fault:
            return f"policy {self.name}, which could not be understood ({self.fault}),"
        action = "DENY" if self.deny else "ALLOW"
        return f"{'dry-run ' if self.dry_run else ''}{action} policy {self.name}"
