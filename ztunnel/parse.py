"""Wire messages to the model, with every check that the rest then relies on.

A resource that does not hold together raises InvalidResource and touches nothing else: the control plane hears of it
in the answer to its response, and what was known under the name before stays.
"""

import logging
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.addresses import from_packed, to_bytes16
from mesh.identity import DEFAULT_TRUST_DOMAIN, Identity, InvalidIdentity
from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from ztunnel.model import (
    HBONE_PORT,
    AccountMatch,
    Clause,
    Families,
    Gateway,
    How,
    Locality,
    Match,
    Mode,
    NetworkAddress,
    Policy,
    PolicyScope,
    Prefix,
    Rule,
    Scope,
    Service,
    StringMatch,
    Vip,
    Workload,
)

log = logging.getLogger(__name__)

Resource = TypeVar("Resource", Workload, Service, Policy)
Value = TypeVar("Value", bound=IntEnum)
Wire = TypeVar("Wire")
Piece = TypeVar("Piece")

_SCHEME = "spiffe://"
_MAX_PORT = 65535
# The longest string that the policy program's 16-bit length can say.
_MAX_STRING_BYTES = 65535


class InvalidResource(ValueError):
    """A resource that cannot be used; the text names it and says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class _Fault(ValueError):
    """What is wrong, before the resource's name is known to the place that found it."""

    def __init__(self, text: str, *, is_placed: bool = False) -> None:
        super().__init__(text)
        self.is_placed = is_placed  # begins with the path of the field


def parse_address(name: str, value: bytes) -> Workload | Service:
    """The workload or service of an encoded `istio.workload.Address`; raises InvalidResource."""
    try:
        message = wire.Address.FromString(value)
        if message.HasField("workload"):
            workload = _workload(message.workload)
            return _named(name, workload.uid, workload)
        if message.HasField("service"):
            service = _service(message.service)
            return _named(name, service.name, service)
        raise _Fault("is neither a workload nor a service")
    except (DecodeError, _Fault, InvalidIdentity) as error:
        raise InvalidResource(name, str(error)) from error


def selected_by(name: str, value: bytes) -> tuple[str, ...] | None:
    """The policies that a workload names, of a message that is otherwise not understood; None when not even these."""
    try:
        message = wire.Address.FromString(value).workload
    except DecodeError:
        return None
    return tuple(message.authorization_policies) if message.uid == name else None


def parse_policy(name: str, value: bytes) -> Policy:
    """The policy of an encoded `istio.security.Authorization`; raises InvalidResource."""
    try:
        policy = _policy(security.Authorization.FromString(value))
        return _named(name, policy.name, policy)
    except (DecodeError, _Fault) as error:
        raise InvalidResource(name, str(error)) from error


def _named(name: str, own_name: str, resource: Resource) -> Resource:
    if name != own_name:
        raise _Fault(f"is called {own_name!r} inside; it could never be removed")
    return resource


# --- pieces -----------------------------------------------------------------------------------------------------


def _enum(what: str, values: type[Value], number: int) -> Value:
    try:
        return values(number)
    except ValueError as error:
        raise _Fault(f"{what} {number} is not supported") from error


def _text(what: str, value: str, *, required: bool = False) -> str:
    # The engine's strings end at a NUL: one inside would make two names equal.
    if "\0" in value:
        raise _Fault(f"{what} {value!r} contains a NUL")
    if required and not value:
        raise _Fault(f"has no {what}")
    return value


def _port(what: str, port: int, *, lowest: int = 0) -> int:
    if not lowest <= port <= _MAX_PORT:
        raise _Fault(f"{what} {port} is not a port")
    return port


def _ip(raw: bytes) -> bytes:
    try:
        return to_bytes16(from_packed(raw))
    except ValueError as error:
        raise _Fault(f"address {raw.hex() or '(empty)'} has {len(raw)} bytes, not 4 or 16") from error


def _prefix(raw: bytes, length: int) -> Prefix:
    ip = _ip(raw)
    if length > len(raw) * 8:
        raise _Fault(f"prefix length {length} is longer than the address {raw.hex()}")
    bits = length + 96 if len(raw) == 4 else length
    return Prefix(ip, bits)


def _masked(prefix: Prefix) -> Prefix:
    keep = (1 << 128) - (1 << 128 - prefix.length)
    return Prefix((int.from_bytes(prefix.ip, "big") & keep).to_bytes(16, "big"), prefix.length)


def _ports(ports: Iterable[wire.Port]) -> dict[int, int]:
    return {_port("service port", p.service_port, lowest=1): _port("target port", p.target_port) for p in ports}


def _gateway(what: str, message: wire.GatewayAddress) -> Gateway:
    port = _port(f"{what} port", message.hbone_mtls_port) or HBONE_PORT
    if message.HasField("hostname"):
        hostname = _text(f"{what} hostname", message.hostname.hostname, required=True)
        return Gateway(f"{_text(f'{what} namespace', message.hostname.namespace)}/{hostname}", port)
    if message.HasField("address"):
        network = _text(f"{what} network", message.address.network)
        return Gateway(NetworkAddress(network, _ip(message.address.address)), port)
    raise _Fault(f"{what} has no destination")


# --- workloads --------------------------------------------------------------------------------------------------

_TUNNELS = {wire.TunnelProtocol.NONE: False, wire.TunnelProtocol.HBONE: True}
_WORKLOAD_TYPES = {
    wire.WorkloadType.DEPLOYMENT: "deployment",
    wire.WorkloadType.CRONJOB: "cronjob",
    wire.WorkloadType.POD: "pod",
    wire.WorkloadType.JOB: "job",
}


def _workload(message: wire.Workload) -> Workload:
    hbone = _TUNNELS.get(message.tunnel_protocol)
    if hbone is None:
        raise _Fault(f"tunnel protocol {message.tunnel_protocol} is not supported")
    return Workload(
        uid=_text("uid", message.uid, required=True),
        name=_text("name", message.name),
        namespace=message.namespace,  # checked as a part of the identity
        identity=Identity(
            message.trust_domain or DEFAULT_TRUST_DOMAIN, message.namespace, message.service_account or "default"
        ),
        addresses=tuple(dict.fromkeys(map(_ip, message.addresses))),
        network=_text("network", message.network),
        hbone=hbone,
        host_network=message.network_mode == wire.NetworkMode.HOST_NETWORK,
        healthy=message.status == wire.WorkloadStatus.HEALTHY,
        node=message.node,
        cluster_id=message.cluster_id or "Kubernetes",
        canonical_name=message.canonical_name,
        canonical_revision=message.canonical_revision,
        workload_type=_WORKLOAD_TYPES.get(message.workload_type, "deployment"),
        workload_name=message.workload_name,
        locality=_locality(message),
        capacity=message.capacity.value if message.HasField("capacity") else 1,
        hostname=message.hostname,
        native_tunnel=message.native_tunnel,
        waypoint=_gateway("waypoint", message.waypoint) if message.HasField("waypoint") else None,
        network_gateway=_network_gateway(message),
        services={name: _ports(ports.ports) for name, ports in message.services.items()},
        policies=tuple(message.authorization_policies),
    )


def _locality(message: wire.Workload) -> Locality:
    if not message.HasField("locality"):
        return Locality()
    return Locality(message.locality.region, message.locality.zone, message.locality.subzone)


def _network_gateway(message: wire.Workload) -> Gateway | None:
    return _gateway("network gateway", message.network_gateway) if message.HasField("network_gateway") else None


# --- services ---------------------------------------------------------------------------------------------------


def _service(message: wire.Service) -> Service:
    balancing = message.load_balancing
    return Service(
        hostname=_text("hostname", message.hostname, required=True),
        namespace=_text("namespace", message.namespace, required=True),
        vips=tuple(dict.fromkeys(map(_vip, message.addresses))),
        ports=_ports(message.ports),
        subject_names=tuple(_subject_names(message)),
        waypoint=_gateway("waypoint", message.waypoint) if message.HasField("waypoint") else None,
        weighted_waypoints=tuple(
            (_gateway("weighted waypoint", weighted.destination), weighted.weight)
            for weighted in message.weighted_waypoints
        ),
        preferences=tuple(_enum("routing preference", Scope, scope) for scope in balancing.routing_preference),
        mode=_enum("load balancing mode", Mode, balancing.mode),
        allow_unhealthy=balancing.health_policy == wire.LoadBalancing.HealthPolicy.ALLOW_ALL,
        families=_enum("address families", Families, message.ip_families),
        canonical=message.canonical,
        namespace_only=message.visibility == wire.Service.Visibility.NAMESPACE,
    )


def _vip(message: wire.NetworkAddress) -> Vip:
    length = message.length if message.HasField("length") else len(message.address) * 8
    prefix = _masked(_prefix(message.address, length))
    return Vip(_text("network", message.network), prefix.ip, prefix.length)


def _subject_names(message: wire.Service) -> Iterable[str]:
    for name in message.subject_alt_names:
        try:
            yield str(Identity.parse(name))
        except InvalidIdentity as error:
            log.warning("service %s/%s: subject name left out: %s", message.namespace, message.hostname, error)


# --- policies ---------------------------------------------------------------------------------------------------


class _Action(IntEnum):
    ALLOW = 0
    DENY = 1


def _policy(message: security.Authorization) -> Policy:
    scope = _enum("scope", PolicyScope, message.scope)
    return Policy(
        local_name=_text("name", message.name, required=True),
        # Without its namespace a namespace's policy would become everybody's.
        namespace=_text("namespace", message.namespace, required=scope is PolicyScope.NAMESPACE),
        scope=scope,
        deny=_enum("action", _Action, message.action) is _Action.DENY,
        dry_run=message.dry_run,
        rules=_each("rules", message.rules, _rule),
    )


def _each(field: str, messages: Iterable[Wire], read: Callable[[Wire], Piece]) -> tuple[Piece, ...]:
    """All of a repeated field; a fault says at which place it was."""
    found = []
    for position, message in enumerate(messages):
        try:
            found.append(read(message))
        except _Fault as error:
            raise _Fault(f"{field}[{position}]{'.' if error.is_placed else ': '}{error}", is_placed=True) from error
    return tuple(found)


def _known(message: Message) -> None:
    """A condition that we do not know would make a rule match more than its author meant."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise _Fault(f"has a condition that is not known here (field {unknown[0].field_number})")


def _rule(message: security.Rule) -> Rule:
    _known(message)
    return _each("clauses", message.clauses, _clause)


def _clause(message: security.Clause) -> Clause:
    _known(message)
    return _each("matches", message.matches, _match)


def _match(message: security.Match) -> Match:
    _known(message)
    if message.extensions:
        raise _Fault("has an extension as condition, which is not supported")
    return Match(
        namespaces=_each("namespaces", message.namespaces, _string),
        not_namespaces=_each("not_namespaces", message.not_namespaces, _string),
        principals=_each("principals", message.principals, _principal),
        not_principals=_each("not_principals", message.not_principals, _principal),
        source_ips=_each("source_ips", message.source_ips, _range),
        not_source_ips=_each("not_source_ips", message.not_source_ips, _range),
        destination_ips=_each("destination_ips", message.destination_ips, _range),
        not_destination_ips=_each("not_destination_ips", message.not_destination_ips, _range),
        destination_ports=_each("destination_ports", message.destination_ports, _destination_port),
        not_destination_ports=_each("not_destination_ports", message.not_destination_ports, _destination_port),
        service_accounts=_each("service_accounts", message.service_accounts, _account),
        not_service_accounts=_each("not_service_accounts", message.not_service_accounts, _account),
    )


def _string(message: security.StringMatch) -> StringMatch:
    kind = message.WhichOneof("match_type")
    if kind is None:
        raise _Fault("has a string match without a type")
    if kind == "presence":
        return StringMatch(How.PRESENCE)
    return StringMatch(How[kind.upper()], _short(getattr(message, kind)))


def _short(value: str) -> str:
    if len(value.encode()) > _MAX_STRING_BYTES:
        raise _Fault(f"string {value[:40]!r}… is longer than {_MAX_STRING_BYTES} bytes")
    return value


def _principal(message: security.StringMatch) -> StringMatch:
    """Principals are compared without their scheme, and users write them both ways."""
    how, value = _string(message)
    return StringMatch(how, value.removeprefix(_SCHEME))


def _range(message: security.Address) -> Prefix:
    _known(message)
    return _prefix(message.address, message.length)


def _destination_port(port: int) -> int:
    return _port("destination port", port)


def _account(message: security.ServiceAccountMatch) -> AccountMatch:
    _known(message)
    return AccountMatch(_short(message.namespace), _short(message.serviceAccount))
