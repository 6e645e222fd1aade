"""The store: what the control plane announced, joined and indexed.

One task writes (it applies the updates of the xDS stream); everybody reads through View. An update is applied whole:
indexes first, then what follows from it is worked out once (endpoints of services, who refers to what), and the
result names every object whose compiled form must be put again. The store refuses malformed resources one by one and
never raises for what the control plane sent; a policy among them keeps its last good version or gets a stand-in.

A removed object is kept under its number for those who still log it, up to a bound.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, Update
from ztunnel.change import Change
from ztunnel.endpoints import Here, prepare
from ztunnel.model import Gateway, Locality, NetworkAddress, Policy, Service, Vip, Workload
from ztunnel.numbers import Numbers
from ztunnel.parse import InvalidResource, parse_address, parse_policy, selected_by
from ztunnel.standin import stand_in
from ztunnel.view import View, unselective_key, vip_references

# Connections outlive the objects they belong to; this many names are kept for their log lines.
RETAINED = 8192

Thing = Workload | Service | Policy
Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Touched:
    """What an update has touched so far."""

    workloads: set[int] = field(default_factory=set)
    services: set[int] = field(default_factory=set)  # must be put
    members: set[str] = field(default_factory=set)  # names of services whose endpoints may differ
    policies: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    addresses: set[bytes] = field(default_factory=set)


class Store(View):
    """The view and its writer. `restored` are the numbers that addresses had before a restart.

    `check` raises InvalidResource for a policy that parses and that the engine would not take.
    """

    def __init__(
        self,
        here: Here,
        restored: Mapping[bytes, int] | None = None,
        retained: int = RETAINED,
        check: Callable[[Policy], None] = lambda _: None,
    ) -> None:
        super().__init__(here)
        self._check = check
        self._numbers = Numbers(restored)
        self._retained = retained
        self._gone: OrderedDict[int, Thing] = OrderedDict()
        self._referrers: dict[str | NetworkAddress, set[int]] = {}
        self._local: dict[str, set[int]] = {}  # namespace -> workloads of this node
        self._selected: dict[str, set[int]] = {}  # policy name -> workloads of this node that name it
        self._address_numbers: dict[bytes, int] = {}
        self._touched = _Touched()

    # --- reading -----------------------------------------------------------------------------------------------

    def named(self, number: int) -> Thing | None:
        """The object of a number for a label, also when it is gone."""
        return (
            self._workloads.get(number)
            or self._services.get(number)
            or self._policies.get(number)
            or self._gone.get(number)
        )

    def is_local(self, workload: Workload) -> bool:
        """Whether a workload runs on this node."""
        return bool(workload.node) and workload.node == self.here.node

    @property
    def address_numbers(self) -> Mapping[bytes, int]:
        """Numbers by address on this node's network: what a restart gets back as `restored`.

        A service's own address stands for the service, unless a workload has it too.
        """
        return self._address_numbers

    def everything(self) -> Change:
        """A change that names all there is, for someone who starts from nothing."""
        return Change(
            frozenset(self._workloads),
            frozenset(self._services),
            frozenset(self._policies),
            addresses=dict(self._address_numbers),
        )

    # --- writing -----------------------------------------------------------------------------------------------

    def apply(self, update: Update) -> Change:
        """Take an update of one of the two types; what it refuses is in the result."""
        parse: Callable[[str, bytes], Thing]
        if update.type_url == ADDRESS_TYPE:
            parse, remove = parse_address, self._remove_address
        elif update.type_url == AUTHORIZATION_TYPE:
            parse, remove = self._understand, self._remove_policy
        else:
            raise ValueError(f"the store has no place for {update.type_url}")
        for name in update.removed:
            remove(name)
        refused = {}
        for changed in update.changed:
            try:
                self._put(parse(changed.name, changed.value))
            except InvalidResource as error:
                refused[error.name] = error.reason
                self._not_taken(update.type_url, changed.name, changed.value, error.reason)
        for name, reason in update.refused.items():
            self._not_taken(update.type_url, name, b"", reason)
        return self._settle(refused)

    def forget(self, number: int) -> None:
        """Nobody will ask for the name of a removed object again."""
        if self._gone.pop(number, None) is not None:
            self._numbers.give_back(number)

    def _put(self, thing: Thing) -> None:
        if isinstance(thing, Workload):
            self._put_workload(thing)
        elif isinstance(thing, Service):
            self._put_service(thing)
        else:
            self._put_policy(thing)

    def _remove_address(self, name: str) -> None:
        if number := self.workload_number(name):
            self._remove_workload(number)
        elif number := self.service_number(name):
            self._remove_service(number)

    # --- workloads ---------------------------------------------------------------------------------------------

    def _put_workload(self, workload: Workload) -> None:
        number = self.workload_number(workload.uid)
        if number:
            if self._workloads[number] == workload:
                return
            self._unlink_workload(number)
        else:
            number = self._numbers.take(self._addresses_of(workload))
            self._workload_numbers[workload.uid] = number
        self._workloads[number] = workload
        self._link_workload(number, workload)
        self._touched.workloads.add(number)

    def _remove_workload(self, number: int) -> None:
        self._unlink_workload(number)
        workload = self._workloads.pop(number)
        del self._workload_numbers[workload.uid]
        self._retire(number, workload)

    def _link_workload(self, number: int, workload: Workload) -> None:
        for service in workload.services:
            self._members.setdefault(service, set()).add(number)
            self._touched.members.add(service)
        if not workload.host_network:
            for ip in workload.addresses:
                self._by_address.setdefault(NetworkAddress(workload.network, ip), set()).add(number)
                self._touch_address(workload.network, ip)
        if workload.waypoint:
            _add(self._referrers, workload.waypoint.destination, number)
        if self.is_local(workload):
            _add(self._local, workload.namespace, number)
            for policy in workload.policies:
                _add(self._selected, policy, number)
            self._learn_locality(workload.locality)

    def _unlink_workload(self, number: int) -> None:
        workload = self._workloads[number]
        for service in workload.services:
            _discard(self._members, service, number)
            self._touched.members.add(service)
        if not workload.host_network:
            for ip in workload.addresses:
                _discard(self._by_address, NetworkAddress(workload.network, ip), number)
                self._touch_address(workload.network, ip)
        if workload.waypoint:
            _discard(self._referrers, workload.waypoint.destination, number)
        _discard(self._local, workload.namespace, number)
        for policy in workload.policies:
            _discard(self._selected, policy, number)

    def _addresses_of(self, workload: Workload) -> tuple[bytes, ...]:
        is_found_by_address = not workload.host_network and workload.network == self.here.network
        return workload.addresses if is_found_by_address else ()

    def _learn_locality(self, locality: Locality) -> None:
        """Where this node is: nothing but its own pods says so."""
        if locality == Locality() or locality == self.here.locality:
            return
        self.here = replace(self.here, locality=locality)
        self._touched.members.update(service.name for service in self._services.values() if service.preferences)

    # --- services ----------------------------------------------------------------------------------------------

    def _put_service(self, service: Service) -> None:
        number = self.service_number(service.name)
        if number:
            if self._services[number] == service:
                return
            self._unlink_service(number)
        else:
            number = self._numbers.take(tuple(vip.ip for vip in self._addresses_of_service(service)))
            self._service_numbers[service.name] = number
            self._touch_referrers(service.name)
        self._services[number] = service
        self._link_service(number, service)

    def _remove_service(self, number: int) -> None:
        self._unlink_service(number)
        service = self._services.pop(number)
        del self._service_numbers[service.name]
        self._prepared.pop(number, None)
        self._touch_referrers(service.name)
        self._retire(number, service)

    def _link_service(self, number: int, service: Service) -> None:
        for vip in service.vips:
            self._by_vip.setdefault(vip, set()).add(number)
            self._vip_lengths[vip.length] += 1
        for address in vip_references(service):
            self._touch_referrers(address)
        self._touched.addresses.update(vip.ip for vip in self._addresses_of_service(service))
        for gateway in _gateways(service):
            _add(self._referrers, gateway.destination, number)
        self._touched.members.add(service.name)
        self._touched.services.add(number)

    def _unlink_service(self, number: int) -> None:
        service = self._services[number]
        for vip in service.vips:
            _discard(self._by_vip, vip, number)
            self._vip_lengths[vip.length] -= 1
            if not self._vip_lengths[vip.length]:
                del self._vip_lengths[vip.length]
        for address in vip_references(service):
            self._touch_referrers(address)
        self._touched.addresses.update(vip.ip for vip in self._addresses_of_service(service))
        for gateway in _gateways(service):
            _discard(self._referrers, gateway.destination, number)

    def _addresses_of_service(self, service: Service) -> list[Vip]:
        return [vip for vip in service.vips if vip.length == 128 and vip.network == self.here.network]

    # --- policies ----------------------------------------------------------------------------------------------

    def _understand(self, name: str, value: bytes) -> Policy:
        policy = parse_policy(name, value)
        self._check(policy)
        self._policy_faults.pop(name, None)
        return policy

    def _not_taken(self, type_url: str, name: str, value: bytes, reason: str) -> None:
        """A policy, or that one selects a pod, must not be missing because something is not understood."""
        if type_url != AUTHORIZATION_TYPE:
            workload = self.workload(self.workload_number(name))
            selecting = selected_by(name, value)
            if workload is not None and selecting is not None:
                self._put_workload(replace(workload, policies=selecting))
            return
        self._policy_faults[name] = reason
        known = self.policy(self.policy_number(name))
        if known is None or known.fault:
            substitute = stand_in(name, value, reason)
            if substitute is not None:
                self._put_policy(substitute)

    def _put_policy(self, policy: Policy) -> None:
        number = self.policy_number(policy.name)
        if number:
            if self._policies[number] == policy:
                return
            self._unlink_policy(number)
        else:
            number = self._numbers.take()
            self._policy_numbers[policy.name] = number
        self._policies[number] = policy
        key = unselective_key(policy)
        if key is not None:
            _add(self._unselective, key, number)
        self._touch_selected(policy)
        self._touched.policies.add(number)

    def _remove_policy(self, name: str) -> None:
        self._policy_faults.pop(name, None)
        number = self.policy_number(name)
        if not number:
            return
        self._unlink_policy(number)
        policy = self._policies.pop(number)
        del self._policy_numbers[policy.name]
        self._retire(number, policy)

    def _unlink_policy(self, number: int) -> None:
        policy = self._policies[number]
        key = unselective_key(policy)
        if key is not None:
            _discard(self._unselective, key, number)
        self._touch_selected(policy)

    def _touch_selected(self, policy: Policy) -> None:
        """The pods of this node whose list of policies this one may join or leave."""
        key = unselective_key(policy)
        namespaces: Iterable[str] = self._local if key == "" else (key or "",)
        for namespace in namespaces:
            self._touched.workloads |= self._local.get(namespace, set())
        self._touched.workloads |= self._selected.get(policy.name, set())

    # --- consequences ------------------------------------------------------------------------------------------

    def _retire(self, number: int, thing: Thing) -> None:
        self._touched.removed.add(number)
        self._gone[number] = thing
        while len(self._gone) > self._retained:
            self.forget(next(iter(self._gone)))

    def _touch_address(self, network: str, ip: bytes) -> None:
        self._touch_referrers(NetworkAddress(network, ip))
        if network == self.here.network:
            self._touched.addresses.add(ip)

    def _touch_referrers(self, destination: str | NetworkAddress) -> None:
        for number in self._referrers.get(destination, ()):
            (self._touched.workloads if number in self._workloads else self._touched.services).add(number)

    def _settle(self, refused: Mapping[str, str]) -> Change:
        """Work out what follows from all that was touched, once."""
        touched, self._touched = self._touched, _Touched()
        for name in touched.members:
            number = self.service_number(name)
            if number and self._prepare(number):
                touched.services.add(number)
        return Change(
            workloads=frozenset(touched.workloads & self._workloads.keys()),
            services=frozenset(touched.services & self._services.keys()),
            policies=frozenset(touched.policies & self._policies.keys()),
            removed=frozenset(touched.removed),
            addresses=self._claim_addresses(touched.addresses),
            refused=refused,
        )

    def _prepare(self, number: int) -> bool:
        service = self._services[number]
        members = ((member, self._workloads[member]) for member in self._members.get(service.name, ()))
        groups = prepare(service, members, self.here)
        is_new = self._prepared.get(number) != groups
        self._prepared[number] = groups
        return is_new

    def _owner(self, ip: bytes) -> int:
        return self.workload_at(ip) or min(self._by_vip.get(Vip(self.here.network, ip, 128), ()), default=0)

    def _claim_addresses(self, touched: Iterable[bytes]) -> dict[bytes, int]:
        """Who has each address now, for those that changed hands."""
        changed = {ip: number for ip in touched if (number := self._owner(ip)) != self._address_numbers.get(ip, 0)}
        for ip, number in changed.items():
            if number:
                self._address_numbers[ip] = number
            else:
                del self._address_numbers[ip]
        return changed


def _gateways(service: Service) -> list[Gateway]:
    return [*([service.waypoint] if service.waypoint else []), *(gateway for gateway, _ in service.weighted_waypoints)]


def _add(index: dict[Key, set[int]], key: Key, number: int) -> None:
    index.setdefault(key, set()).add(number)


def _discard(index: dict[Key, set[int]], key: Key, number: int) -> None:
    numbers = index.get(key)
    if numbers is None:
        return
    numbers.discard(number)
    if not numbers:
        del index[key]
