"""Which endpoints of a service this node may use, and with what share: worked out once per change, not per connection.

An endpoint is left out when it is not healthy (unless the service says that does not matter), has no capacity, no
address of the service's families, or no target for the port. Of those left, one on another network only counts when
there is none on ours, because we could only refuse it. Then the service's preference ranks them by how near they are
to this node. Pure; both the reference decisions and the compiled tables use the result.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ztunnel.model import Locality, Mode, Scope, Service, Workload

# Stands for "whatever the port": how the members of a service that is a waypoint are found.
ANY_PORT = 0


class Endpoint(NamedTuple):
    """A workload that serves a port; with weight 0 a member that may not be chosen. As in the engine's border."""

    workload: int
    service_port: int
    target_port: int
    weight: int


@dataclass(frozen=True, slots=True)
class Here:
    """The node that decides, as far as nearness goes."""

    node: str
    network: str
    cluster_id: str
    locality: Locality = Locality()


class _Candidate(NamedTuple):
    number: int
    workload: Workload
    rank: int


Groups = Mapping[int, tuple[Endpoint, ...]]


def prepare(service: Service, members: Iterable[tuple[int, Workload]], here: Here) -> Groups:
    """The endpoints of each port of the service by number of their workload, and of ANY_PORT all members."""
    ordered = sorted(members)
    candidates = [
        _Candidate(number, workload, nearness(workload, service.preferences, here))
        for number, workload in ordered
        if _is_usable(service, workload)
    ]
    groups = {port: _of_port(service, port, candidates, here) for port in service.ports}
    chosen = {candidate.number for candidate in _select(service, candidates, here)}
    groups[ANY_PORT] = tuple(
        Endpoint(number, ANY_PORT, 0, workload.capacity if number in chosen else 0) for number, workload in ordered
    )
    return groups


def nearness(workload: Workload, preferences: tuple[Scope, ...], here: Here) -> int:
    """How many of the preferences hold, counted up to the first that does not."""
    for rank, scope in enumerate(preferences):
        if not _is_same(scope, workload, here):
            return rank
    return len(preferences)


def _is_same(scope: Scope, workload: Workload, here: Here) -> bool:
    if scope is Scope.NODE:
        return workload.node == here.node
    if scope is Scope.CLUSTER:
        return workload.cluster_id == here.cluster_id
    if scope is Scope.NETWORK:
        return workload.network == here.network
    if scope is Scope.REGION:
        return workload.locality.region == here.locality.region
    if scope is Scope.ZONE:
        return workload.locality.zone == here.locality.zone
    return workload.locality.subzone == here.locality.subzone


def _is_usable(service: Service, workload: Workload) -> bool:
    return (
        (workload.healthy or service.allow_unhealthy)
        and workload.capacity > 0
        and any(service.families.accepts(ip) for ip in workload.addresses)
    )


def _of_port(service: Service, port: int, candidates: list[_Candidate], here: Here) -> tuple[Endpoint, ...]:
    targets = {candidate.number: _target(service, port, candidate.workload) for candidate in candidates}
    with_target = [candidate for candidate in candidates if targets[candidate.number]]
    return tuple(
        Endpoint(candidate.number, port, targets[candidate.number], candidate.workload.capacity)
        for candidate in _select(service, with_target, here)
    )


def _target(service: Service, port: int, workload: Workload) -> int:
    return workload.services.get(service.name, {}).get(port) or service.ports[port]


def _select(service: Service, candidates: list[_Candidate], here: Here) -> list[_Candidate]:
    near = [candidate for candidate in candidates if candidate.workload.network == here.network] or candidates
    if service.mode is Mode.STRICT:
        return [candidate for candidate in near if candidate.rank == len(service.preferences)]
    if service.mode is Mode.FAILOVER:
        best = max((candidate.rank for candidate in near), default=0)
        return [candidate for candidate in near if candidate.rank == best]
    return near
