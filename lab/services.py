"""What an API server does with a Service and an EndpointSlice when it takes them: check, fill in, allocate."""

import copy
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from lab import plan
from lab.endpoints import IPv4, IPv6, family_of
from lab.manifests import Manifest
from lab.plan import PlanExhausted

PROTOCOLS = ("TCP", "UDP", "SCTP")
POLICIES = ("SingleStack", "PreferDualStack", "RequireDualStack")
TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")


class InvalidObject(ValueError):
    """An object that cannot be taken; `faults` names each field that is wrong."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class ServiceAddresses:
    """Allocates VIPs and NodePorts; a service keeps what it has."""

    def __init__(self) -> None:
        self._numbers = plan.service_numbers()
        self._node_ports = plan.node_ports()

    def admit(self, service: Manifest, previous: Manifest | None) -> Manifest:
        """A checked copy with every default filled in; raises InvalidObject and then has changed nothing."""
        faults = list(service_faults(service))
        if faults:
            raise InvalidObject(faults)
        admitted = copy.deepcopy(service)
        spec = admitted["spec"]
        if previous is not None:
            _inherit(spec, previous["spec"])
            self.release(previous)
        taken: list[tuple[plan.Numbers, int]] = []
        try:
            self._fill_addresses(spec, taken)
            self._fill_ports(spec, taken)
        except (InvalidObject, PlanExhausted) as error:
            for numbers, number in taken:
                numbers.release(number)
            if previous is not None:
                self._retake(previous)
            raise InvalidObject([str(error)]) from error
        return admitted

    def release(self, service: Manifest) -> None:
        """Give back what a service has."""
        for numbers, number in self._held(service):
            numbers.release(number)

    def _retake(self, service: Manifest) -> None:
        for numbers, number in self._held(service):
            numbers.take(number)

    def _held(self, service: Manifest) -> Iterator[tuple[plan.Numbers, int]]:
        for ip in service["spec"].get("clusterIPs", ()):
            if ip != "None":
                yield self._numbers, _number(ip)
        for port in service["spec"].get("ports") or ():
            if port.get("nodePort"):
                yield self._node_ports, port["nodePort"]

    def _fill_addresses(self, spec: dict[str, Any], taken: list[tuple[plan.Numbers, int]]) -> None:
        spec.setdefault("type", "ClusterIP")
        if spec["type"] == "ExternalName":
            return
        given = _given_ips(spec)
        spec["ipFamilies"] = families = _families(spec, given)
        spec.setdefault("ipFamilyPolicy", "RequireDualStack" if len(families) == 2 else "SingleStack")
        if spec.get("clusterIP") == "None":
            spec["clusterIPs"] = ["None"]
            return
        asked = {_number(ip) for ip in given}
        if len(asked) > 1:
            raise InvalidObject(["spec.clusterIPs: both must be the same number of their ranges in a lab"])
        number = asked.pop() if asked else self._numbers.allocate()
        if given and not self._numbers.take(number):
            raise InvalidObject([f"spec.clusterIP {given[0]} is another service's or outside {plan.SERVICES4}"])
        taken.append((self._numbers, number))
        addresses = {IPv4: str(plan.SERVICES4[number]), IPv6: str(plan.SERVICES6[number])}
        spec["clusterIPs"] = [addresses[family] for family in families]
        spec["clusterIP"] = spec["clusterIPs"][0]

    def _fill_ports(self, spec: dict[str, Any], taken: list[tuple[plan.Numbers, int]]) -> None:
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
            if spec["type"] not in ("NodePort", "LoadBalancer"):
                continue
            if port.get("nodePort") is None:
                port["nodePort"] = self._node_ports.allocate()
            elif not self._node_ports.take(port["nodePort"]):
                raise InvalidObject([f"nodePort {port['nodePort']} is taken or outside 30000-32767"])
            taken.append((self._node_ports, port["nodePort"]))


def service_faults(service: Manifest) -> Iterator[str]:
    """What is wrong with a Service."""
    spec = service.get("spec")
    if not isinstance(spec, dict):
        yield "spec is missing"
        return
    if spec.get("type", "ClusterIP") not in TYPES:
        yield f"spec.type {spec['type']!r} is none of {', '.join(TYPES)}"
    selector = spec.get("selector") or {}
    if not isinstance(selector, dict) or not all(isinstance(v, str) for v in selector.values()):
        yield "spec.selector maps text to text (quote numbers and booleans)"
    families = spec.get("ipFamilies") or []
    if not isinstance(families, list) or any(f not in (IPv4, IPv6) for f in families):
        yield f"spec.ipFamilies holds {IPv4} and {IPv6} only"
    if spec.get("ipFamilyPolicy", POLICIES[0]) not in POLICIES:
        yield f"spec.ipFamilyPolicy {spec['ipFamilyPolicy']!r} is none of {', '.join(POLICIES)}"
    yield from _ip_faults(spec)
    ports = spec.get("ports") or []
    if not isinstance(ports, list):
        yield "spec.ports is not a list"
        return
    if not ports and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None":
        yield "spec.ports is empty"
    for i, port in enumerate(ports):
        yield from _port_faults(port, f"spec.ports[{i}]")
    keys = [(p.get("protocol", "TCP"), p.get("port")) for p in ports if isinstance(p, dict)]
    if len(set(keys)) != len(keys):
        yield "two of spec.ports have one protocol and port"


def slice_faults(item: Manifest) -> Iterator[str]:
    """What is wrong with an EndpointSlice, as far as nodes use it."""
    for i, port in enumerate(item.get("ports") or ()):
        if not isinstance(port, dict) or not _is_port(port.get("port")):
            yield f"ports[{i}].port is not a port"
    for i, endpoint in enumerate(item.get("endpoints") or ()):
        addresses = endpoint.get("addresses") if isinstance(endpoint, dict) else None
        if not isinstance(addresses, list) or not all(_is_ip(ip) for ip in addresses):
            yield f"endpoints[{i}].addresses is not a list of IP addresses"


def _ip_faults(spec: dict[str, Any]) -> Iterator[str]:
    for ip in _given_ips(spec):
        if not _is_ip(ip) or ip_address(ip) not in (plan.SERVICES6 if ":" in ip else plan.SERVICES4):
            yield f"spec.clusterIP {ip!r} is not in the lab's service ranges {plan.SERVICES4}, {plan.SERVICES6}"


def _port_faults(port: Any, at: str) -> Iterator[str]:
    if not isinstance(port, dict):
        yield f"{at} is not a mapping"
        return
    if not _is_port(port.get("port")):
        yield f"{at}.port {port.get('port')!r} is not a port"
    if port.get("protocol", "TCP") not in PROTOCOLS:
        yield f"{at}.protocol {port['protocol']!r} is none of {', '.join(PROTOCOLS)}"
    target = port.get("targetPort", 1)
    if not (_is_port(target) or (isinstance(target, str) and target)):
        yield f"{at}.targetPort {target!r} is neither a port nor a port's name"
    if port.get("nodePort") is not None and not _is_port(port["nodePort"]):
        yield f"{at}.nodePort {port['nodePort']!r} is not a port"


def _given_ips(spec: dict[str, Any]) -> list[Any]:
    given = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [ip for ip in given if ip != "None"]


def _families(spec: dict[str, Any], given: list[Any]) -> list[str]:
    """One family unless the service asks for both, as an API server has it.

    A name that has both addresses sends clients to IPv6 first. In front of a server that listens on IPv4 alone, as many
    do, the mesh accepts such a connection and then resets it; outside the mesh a client would have gone on to IPv4.
    """
    named = spec.get("ipFamilies") or [family_of(ip) for ip in given] or [IPv4]
    first = named[0]
    if spec.get("ipFamilyPolicy") == "SingleStack" or ("ipFamilyPolicy" not in spec and len(named) == 1):
        return [first]
    return [first, IPv6 if first == IPv4 else IPv4]


def _inherit(spec: dict[str, Any], previous: dict[str, Any]) -> None:
    """An update that does not mention addresses and NodePorts keeps them."""
    if "clusterIP" not in spec and "clusterIPs" not in spec and previous.get("clusterIP") != "None":
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if field in previous and ("ipFamilyPolicy" not in spec or field == "clusterIP"):
                spec.setdefault(field, previous[field])
    had = {(p.get("protocol"), p["port"]): p.get("nodePort") for p in previous.get("ports") or ()}
    for port in spec.get("ports") or ():
        node_port = had.get((port.get("protocol", "TCP"), port["port"]))
        if node_port and spec.get("type") in ("NodePort", "LoadBalancer"):
            port.setdefault("nodePort", node_port)


def _number(ip: str) -> int:
    first = plan.SERVICES6[0] if ":" in ip else plan.SERVICES4[0]
    return int(ip_address(ip)) - int(first)


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


def _is_ip(value: Any) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return isinstance(value, str)
