"""The decisions of a ztunnel, in Python: where a connection goes, and whether one is let in.

The engine takes the same decisions from compiled tables (engine/src/tables_route.c, tables_judge.c); property tests
hold the two equal. This is the version to read, and the one that explains: every result carries its trail, one
sentence per step, which names the object that decided.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple, TypeVar

from mesh.addresses import from_bytes16, with_port
from mesh.reasons import Reason
from ztunnel.authorize import Connection, policy_matches
from ztunnel.endpoints import ANY_PORT, Endpoint
from ztunnel.model import HBONE_PORT, Families, Mode, Policy, Service, Workload, is_ipv4
from ztunnel.view import View, Waypoint, WaypointKind

T = TypeVar("T")

MESH_PORTS = frozenset({15001, 15006, HBONE_PORT})

_LOOPBACK6 = bytes(15) + b"\x01"
_RANDOM_BITS = 64
_LISTED_PORTS = 10


class Destination(NamedTuple):
    """An address of 16 bytes and a port."""

    ip: bytes
    port: int

    def __str__(self) -> str:
        return with_port(from_bytes16(self.ip), self.port)


NOWHERE = Destination(bytes(16), 0)


class RouteKind(IntEnum):
    """How a connection is carried; values of the engine's enum cv_route_kind."""

    PLAIN = 0
    HBONE = 1
    REFUSE = 2


@dataclass(frozen=True, slots=True)
class Route:
    """Where an outbound connection goes; the fields of the engine's struct cv_route."""

    kind: RouteKind
    reason: Reason = Reason.OK
    workload: int = 0
    service: int = 0
    next_hop: int = 0
    next_hop_service: int = 0
    dial: Destination = NOWHERE
    authority: Destination = NOWHERE
    trail: tuple[str, ...] = field(default=(), compare=False)


_UNDECIDED = Route(RouteKind.REFUSE)


class Peer(NamedTuple):
    """Who connects: the SPIFFE id that its certificate showed, None without one, and its address."""

    identity: str | None
    ip: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an inbound connection is let in; the fields of the engine's struct cv_verdict."""

    allow: bool
    policy: int = 0
    dry_run_policy: int = 0
    trail: tuple[str, ...] = field(default=(), compare=False)


# --- outbound ---------------------------------------------------------------------------------------------------


def outbound(view: View, source: int, destination: Destination, randomness: int) -> Route:
    """Where a connection of a workload (by number) goes; `randomness` has 64 bits and picks among endpoints."""
    trail: list[str] = []
    if destination.port in MESH_PORTS and _is_loopback(destination.ip):
        trail.append(f"{destination} is one of the mesh's own ports")
        return Route(RouteKind.REFUSE, Reason.SELF_CALL, trail=tuple(trail))
    caller = view.workload(source)
    if caller is None:
        trail.append("the source is not a workload that the controller has announced")
        return Route(RouteKind.REFUSE, Reason.UNKNOWN_SOURCE, trail=tuple(trail))
    return _Outbound(view, source, caller, destination, randomness, trail).route()


def pick(shares: Sequence[tuple[T, int]], randomness: int) -> T | None:
    """The item on whose share of the weights 64 random bits fall; None when there is no weight."""
    ticket = randomness * sum(weight for _, weight in shares) >> _RANDOM_BITS
    for item, weight in shares:
        if ticket < weight:
            return item
        ticket -= weight
    return None


def _listed(ports: Iterable[int]) -> str:
    """Ports for people: a service may have thousands."""
    found = sorted(ports)
    rest = len(found) - _LISTED_PORTS
    return (", ".join(map(str, found[:_LISTED_PORTS])) or "none") + (f" and {rest} more" if rest > 0 else "")


def _is_loopback(ip: bytes) -> bool:
    return ip[12] == 127 if is_ipv4(ip) else ip == _LOOPBACK6


@dataclass(frozen=True, slots=True)
class _Outbound:
    """One outbound decision under way; `trail` grows with each step."""

    view: View
    source: int
    caller: Workload
    destination: Destination
    randomness: int
    trail: list[str]

    def route(self) -> Route:
        owner = self.view.workload_at(self.destination.ip)
        number = self._find_service()
        service = self.view.service(number)
        if service is not None:
            return self._to_service(number, service, owner)
        workload = self.view.workload(owner)
        if workload is not None:
            self.trail.append(f"{self.destination} is an address of {workload.label}")
            return self._to_workload_address(owner, workload)
        self.trail.append(f"{self.destination} is nobody's that the mesh knows: passed through as it is")
        return self._end(_UNDECIDED, RouteKind.PLAIN, self.destination)

    # --- services ----------------------------------------------------------------------------------------------

    def _find_service(self) -> int:
        """The caller's namespace wins, then the longer range, then the canonical service, then the first by name."""
        claims = []
        for number, service, length in self.view.services_at(self.destination.ip):
            is_near = service.namespace == self.caller.namespace
            if service.namespace_only and not is_near:
                self.trail.append(f"{service.label} has this address, and is seen only from its own namespace")
                continue
            is_range = length < 128  # a single address beats any range
            names = service.namespace.encode(), service.hostname.encode()
            claims.append((is_range, not is_near, -length, not service.canonical, names, number))
        return min(claims)[-1] if claims else 0

    def _to_service(self, number: int, service: Service, owner: int) -> Route:
        self.trail.append(f"{self.destination} is a VIP of {service.label}")
        known = replace(_UNDECIDED, service=number)
        waypoints = self.view.waypoints_of_service(service)
        if waypoints and owner:
            self.trail.append("its waypoint does not apply: the address is a workload's too")
        elif waypoints and not any(map(self._is_waypoint, waypoints)):
            return self._to_waypoint(self._pick_waypoint(waypoints), known)
        elif waypoints:
            self.trail.append("its waypoint does not apply: the source is that waypoint")
        if service.mode is Mode.PASSTHROUGH:
            self.trail.append("the service passes connections through to the address that was dialled")
            return self._end(known, RouteKind.PLAIN, self.destination)
        return self._to_endpoint(number, service, known)

    def _to_endpoint(self, number: int, service: Service, known: Route) -> Route:
        port = self.destination.port
        endpoints = self.view.endpoints_of_port(number, port) if port != ANY_PORT else None
        if endpoints is None:
            self.trail.append(f"{service.label} has no port {port}, only {_listed(service.ports)}")
            return self._refuse(known, Reason.UNKNOWN_PORT)
        chosen = self._pick_endpoint(endpoints)
        workload = self.view.workload(chosen.workload) if chosen else None
        if chosen is None or workload is None:
            self.trail.append(f"{service.label} has no usable endpoint for port {port}")
            return self._refuse(known, Reason.NO_HEALTHY_UPSTREAM)
        self.trail.append(f"endpoint {workload.label}, one of {len(endpoints)}")
        known = replace(known, workload=chosen.workload)
        return self._to_workload(workload, service.families, chosen.target_port, known)

    def _pick_endpoint(self, endpoints: Sequence[Endpoint]) -> Endpoint | None:
        return pick([(endpoint, endpoint.weight) for endpoint in endpoints], self.randomness)

    # --- workloads ---------------------------------------------------------------------------------------------

    def _to_workload_address(self, number: int, workload: Workload) -> Route:
        known = replace(_UNDECIDED, workload=number)
        waypoint = self.view.waypoint_of_workload(workload)
        if waypoint and not self._is_waypoint(waypoint):
            return self._to_waypoint(waypoint, known)
        if waypoint:
            self.trail.append("its waypoint does not apply: the source is that waypoint")
        return self._to_workload(workload, Families.ANY, self.destination.port, known)

    def _to_workload(self, workload: Workload, families: Families, port: int, known: Route) -> Route:
        if not self._is_on_network(workload):
            return self._refuse(known, Reason.UNSUPPORTED_NETWORK)
        ip = self._choose_address(workload, families)
        if ip is None:
            self.trail.append("it has no address that may be dialled")
            return self._refuse(known, Reason.NO_HEALTHY_UPSTREAM)
        if not workload.hbone:
            self.trail.append("it does not speak HBONE: plain")
            return self._end(known, RouteKind.PLAIN, Destination(ip, port))
        self.trail.append(f"it speaks HBONE: expected to be {workload.identity}")
        known = replace(known, next_hop=known.workload, next_hop_service=known.service)
        return self._end(known, RouteKind.HBONE, Destination(ip, HBONE_PORT), Destination(ip, port))

    def _choose_address(self, workload: Workload, families: Families) -> bytes | None:
        """The address that was dialled, else one of its family, else any that the service allows."""
        dialled = self.destination.ip
        if dialled in workload.addresses:
            return dialled
        allowed = [ip for ip in workload.addresses if families.accepts(ip)]
        same_family = [ip for ip in allowed if is_ipv4(ip) == is_ipv4(dialled)]
        return next(iter(same_family or allowed), None)

    def _is_on_network(self, workload: Workload) -> bool:
        if workload.network == self.caller.network:
            return True
        self.trail.append(f"it is on network {workload.network!r}, which cannot be reached from here")
        return False

    # --- waypoints ---------------------------------------------------------------------------------------------

    def _is_waypoint(self, waypoint: Waypoint) -> bool:
        """Whether the caller is this waypoint, ready or not."""
        if waypoint.kind is WaypointKind.WORKLOAD:
            return waypoint.number == self.source
        members = self.view.endpoints_of_port(waypoint.number, ANY_PORT) or ()
        return waypoint.kind is WaypointKind.SERVICE and any(member.workload == self.source for member in members)

    def _pick_waypoint(self, waypoints: Sequence[Waypoint]) -> Waypoint:
        """Halves swapped, so that which waypoint and which of its endpoints are two draws."""
        swapped = (self.randomness << 32 | self.randomness >> 32) & 0xFFFFFFFFFFFFFFFF
        chosen = pick([(waypoint, waypoint.weight) for waypoint in waypoints], swapped)
        assert chosen is not None, "the view leaves out waypoints without weight"
        return chosen

    def _to_waypoint(self, waypoint: Waypoint, known: Route) -> Route:
        self.trail.append(f"waypoint {waypoint.gateway}")
        number, service = waypoint.number, None
        if waypoint.kind is WaypointKind.SERVICE:
            service = self.view.service(number)
            endpoint = self._pick_endpoint(self.view.endpoints_of_port(number, ANY_PORT) or ())
            number = endpoint.workload if endpoint else 0
        proxy = self.view.workload(number)
        if proxy is None:
            self.trail.append("it is configured and cannot be found: refused, not passed by")
            return self._refuse(known, Reason.UNKNOWN_WAYPOINT)
        self.trail.append(f"it is {proxy.label}")
        known = replace(known, next_hop=number, next_hop_service=waypoint.number if service else 0)
        if not self._is_on_network(proxy):
            return self._refuse(known, Reason.UNSUPPORTED_NETWORK)
        ip = self._choose_address(proxy, service.families if service else Families.ANY)
        if ip is None:
            self.trail.append("it has no address that may be dialled")
            return self._refuse(known, Reason.UNKNOWN_WAYPOINT)
        self.trail.append(f"asked over HBONE for {self.destination}")
        return self._end(known, RouteKind.HBONE, Destination(ip, waypoint.port), self.destination)

    # --- ends --------------------------------------------------------------------------------------------------

    def _end(self, known: Route, kind: RouteKind, dial: Destination, authority: Destination = NOWHERE) -> Route:
        return replace(known, kind=kind, dial=dial, authority=authority, trail=tuple(self.trail))

    def _refuse(self, known: Route, reason: Reason) -> Route:
        return replace(known, reason=reason, trail=tuple(self.trail))


# --- inbound ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opinion:
    """What the policies of one action and mode say, by number: the first that matches, and the first there is."""

    matched: int = 0
    rule: int = 0
    first: int = 0


def inbound(view: View, workload: int, peer: Peer, destination: Destination) -> Verdict:
    """Whether a peer may reach a workload (by number) at the address and port of its application."""
    judged = view.workload(workload)
    if judged is None:
        return Verdict(False, trail=("the destination is not a workload that the controller has announced",))
    connection = Connection.of(peer.identity, peer.ip, destination.ip, destination.port)
    policies = [(number, policy) for number in view.policies_of(judged) if (policy := view.policy(number))]
    return _conclude(view, {key: _ask(policies, key, connection) for key in _ACTIONS})


# (is deny, is dry run)
_ACTIONS = ((True, False), (True, True), (False, False), (False, True))


def _ask(policies: Sequence[tuple[int, Policy]], action: tuple[bool, bool], connection: Connection) -> _Opinion:
    asked = [(number, policy) for number, policy in policies if (policy.deny, policy.dry_run) == action]
    first = asked[0][0] if asked else 0
    for number, policy in asked:
        rule = policy_matches(policy, connection)
        if rule is not None:
            return _Opinion(number, rule, first)
    return _Opinion(first=first)


def _conclude(view: View, opinions: Mapping[tuple[bool, bool], _Opinion]) -> Verdict:
    """An enforced DENY that matches refuses; else no ALLOW at all, or one that matches, lets in; else refused.

    A dry-run policy is only reported: a DENY that matches, or an ALLOW when no ALLOW of either kind does.
    """
    deny, dry_deny, allow, dry_allow = (opinions[action] for action in _ACTIONS)
    trail = []
    dry_run = dry_deny.matched
    if dry_run:
        trail.append(_says(view, dry_run, f"would refuse: its rule {dry_deny.rule} matches"))
    if deny.matched:
        trail.append(_says(view, deny.matched, f"refuses: its rule {deny.rule} matches"))
        return Verdict(False, deny.matched, dry_run, tuple(trail))
    if not dry_run and dry_allow.first and not dry_allow.matched and not allow.matched:
        dry_run = dry_allow.first
        trail.append(_says(view, dry_run, "would refuse: no rule of an ALLOW policy matches"))
    if allow.matched:
        trail.append(_says(view, allow.matched, f"lets in: its rule {allow.rule} matches"))
    elif allow.first:
        trail.append(_says(view, allow.first, "refuses: no rule of it or of another ALLOW policy matches"))
    else:
        trail.append("let in: no DENY policy matches and there is no ALLOW policy")
    return Verdict(bool(allow.matched) or not allow.first, allow.matched or allow.first, dry_run, tuple(trail))


def _says(view: View, number: int, what: str) -> str:
    policy = view.policy(number)
    if policy is None:
        return f"{number} {what}"
    newer = "" if policy.fault else view.policy_faults.get(policy.name, "")
    stale = f" (its newest version could not be understood: {newer}; this is the one before)" if newer else ""
    return f"{policy.label} {what}{stale}"
