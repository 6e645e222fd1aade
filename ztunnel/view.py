"""The mesh as decisions read it: objects by number, and the indexes by which they are found.

`ztunnel/state.py` is the one writer. Everything else reads, on the same thread and without awaiting in between, so a
reader always sees one state; the engine, which has other threads, gets compiled snapshots instead.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import NamedTuple

from ztunnel.endpoints import Endpoint, Groups, Here
from ztunnel.model import Gateway, NetworkAddress, Policy, PolicyScope, Service, Vip, Workload


class WaypointKind(Enum):
    """What a reference to a waypoint leads to."""

    UNKNOWN = auto()
    SERVICE = auto()
    WORKLOAD = auto()


class Waypoint(NamedTuple):
    """A reference to a waypoint, resolved."""

    kind: WaypointKind
    number: int
    port: int
    weight: int
    gateway: Gateway


class View:
    """Look-ups. A number of another kind, of nothing, or of a removed object is None like any unknown one."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self._workloads: dict[int, Workload] = {}
        self._services: dict[int, Service] = {}
        self._policies: dict[int, Policy] = {}
        self._workload_numbers: dict[str, int] = {}
        self._service_numbers: dict[str, int] = {}
        self._policy_numbers: dict[str, int] = {}
        self._by_address: dict[NetworkAddress, set[int]] = {}
        self._by_vip: dict[Vip, set[int]] = {}
        self._vip_lengths: Counter[int] = Counter()
        self._members: dict[str, set[int]] = {}
        self._prepared: dict[int, Groups] = {}
        self._unselective: dict[str, set[int]] = {}  # namespace, "" for all: policies that need no selection
        self._policy_faults: dict[str, str] = {}

    # --- objects -----------------------------------------------------------------------------------------------

    def workload(self, number: int) -> Workload | None:
        """The workload of a number."""
        return self._workloads.get(number)

    def service(self, number: int) -> Service | None:
        """The service of a number."""
        return self._services.get(number)

    def policy(self, number: int) -> Policy | None:
        """The policy of a number."""
        return self._policies.get(number)

    def workload_number(self, uid: str) -> int:
        """The number of a workload; 0: unknown."""
        return self._workload_numbers.get(uid, 0)

    def service_number(self, name: str) -> int:
        """The number of a service by "namespace/hostname"; 0: unknown."""
        return self._service_numbers.get(name, 0)

    def policy_number(self, name: str) -> int:
        """The number of a policy by "namespace/name"; 0: unknown."""
        return self._policy_numbers.get(name, 0)

    def workloads(self) -> Iterable[tuple[int, Workload]]:
        """All workloads."""
        return self._workloads.items()

    def services(self) -> Iterable[tuple[int, Service]]:
        """All services."""
        return self._services.items()

    def policies(self) -> Iterable[tuple[int, Policy]]:
        """All policies."""
        return self._policies.items()

    # --- addresses ---------------------------------------------------------------------------------------------

    def workload_at(self, ip: bytes) -> int:
        """The workload that has an address on this node's network; 0: none."""
        return self._workload_on(NetworkAddress(self.here.network, ip))

    def services_at(self, ip: bytes) -> Iterator[tuple[int, Service, int]]:
        """Number, service and length of every VIP range on this node's network that holds the address."""
        value = int.from_bytes(ip, "big")
        for length in self._vip_lengths:
            if length < 96 and value >> 32 == 0xFFFF:
                continue  # a range of IPv6, however wide, holds no IPv4 address
            masked = value >> 128 - length << 128 - length
            for number in self._by_vip.get(Vip(self.here.network, masked.to_bytes(16, "big"), length), ()):
                yield number, self._services[number], length

    def _workload_on(self, address: NetworkAddress) -> int:
        """Of several on one address a pod wins, then one that speaks HBONE, then the younger."""
        return max(self._by_address.get(address, ()), key=self._claim, default=0)

    def _claim(self, number: int) -> tuple[bool, bool, int]:
        workload = self._workloads[number]
        return "//Pod/" in workload.uid, workload.hbone, number

    # --- services ----------------------------------------------------------------------------------------------

    def endpoints(self, number: int) -> Groups:
        """The usable endpoints of a service by port, see ztunnel/endpoints.py."""
        return self._prepared.get(number, {})

    def endpoints_of_port(self, number: int, port: int) -> tuple[Endpoint, ...] | None:
        """The usable endpoints of one port; None when the service has no such port."""
        return self._prepared.get(number, {}).get(port)

    # --- waypoints ---------------------------------------------------------------------------------------------

    def waypoints_of_service(self, service: Service) -> tuple[Waypoint, ...]:
        """Where connections to a service's VIPs are to go first: all of it, by weight. Empty: nowhere."""
        weighted = [self._resolve(gateway, weight) for gateway, weight in service.weighted_waypoints if weight]
        if weighted:
            return tuple(weighted)
        return (self._resolve(service.waypoint, 1),) if service.waypoint else ()

    def waypoint_of_workload(self, workload: Workload) -> Waypoint | None:
        """Where connections to a workload's own addresses are to go first."""
        return self._resolve(workload.waypoint, 1) if workload.waypoint else None

    def _resolve(self, gateway: Gateway, weight: int) -> Waypoint:
        destination = gateway.destination
        if isinstance(destination, str):
            number, kind = self.service_number(destination), WaypointKind.SERVICE
        else:
            number, kind = self._workload_on(destination), WaypointKind.WORKLOAD
            if not number:
                exact = self._by_vip.get(Vip(destination.network, destination.ip, 128), ())
                number, kind = min(exact, key=lambda n: self._services[n].name, default=0), WaypointKind.SERVICE
        return Waypoint(kind if number else WaypointKind.UNKNOWN, number, gateway.port, weight, gateway)

    # --- policies ----------------------------------------------------------------------------------------------

    def policies_of(self, workload: Workload) -> tuple[int, ...]:
        """Every policy that judges connections to a workload, in the order of names.

        These are the global ones, its namespace's, and those that it says select it; one of the last that is not
        there is skipped, as the protocol asks.
        """
        numbers = self._unselective.get("", set()) | self._unselective.get(workload.namespace, set())
        numbers |= {number for name in workload.policies if (number := self.policy_number(name))}
        return tuple(sorted(numbers, key=lambda number: self._policies[number].name))

    @property
    def policy_faults(self) -> Mapping[str, str]:
        """Policies whose newest version nobody understood, by name, and why.

        What is in force for them is the version before, or a stand-in that refuses everything.
        """
        return self._policy_faults

    def lets_pass_unguarded(self, uid: str) -> bool:
        """Whether nothing at all restricts who reaches a pod: no policy selects it and it takes plaintext.

        Only such a pod may be reached past a ztunnel that is away. A policy that selects it and has not arrived yet
        counts as one; STRICT arrives as a policy.
        """
        workload = self.workload(self.workload_number(uid))
        if workload is None:
            return False
        if any(not self.policy_number(name) for name in workload.policies):
            return False
        return all(self._policies[number].dry_run for number in self.policies_of(workload))


def unselective_key(policy: Policy) -> str | None:
    """Under what a policy applies without being named by workloads; None when it must be named."""
    if policy.scope is PolicyScope.GLOBAL:
        return ""
    return policy.namespace if policy.scope is PolicyScope.NAMESPACE else None


def vip_references(service: Service) -> Mapping[NetworkAddress, None]:
    """The single addresses under which something may refer to a service."""
    return {NetworkAddress(vip.network, vip.ip): None for vip in service.vips if vip.length == 128}
