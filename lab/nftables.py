"""The kube-proxy stand-in of one node as nftables text, replaced as a whole in one transaction.

It serves who is not in the mesh: service addresses and NodePorts are translated to ready endpoints, chosen at random
per connection. NodePort traffic and a pod that reaches itself through a service leave with the node's own address. What
is sent to a service address that has no endpoint is refused at once.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from lab.endpoints import Endpoint, IPv4, IPv6, ServicePort
from lab.plan import SERVICES4, SERVICES6, NodePlan

# The bit by which kube-proxy marks what must be masqueraded.
MASQUERADE = "0x4000"

_FAMILIES = ((IPv4, "ip", "ipv4_addr"), (IPv6, "ip6", "ipv6_addr"))


def render(node: NodePlan, ports: Iterable[ServicePort]) -> str:
    """The whole table of one node."""
    ports = list(ports)
    lines = chain(
        ("table inet services", "delete table inet services", "table inet services {"),
        _targets(ports),
        _maps(ports),
        _hooks(node),
        ("}",),
    )
    return "\n".join(lines) + "\n"


def _targets(ports: list[ServicePort]) -> Iterator[str]:
    for number, port in enumerate(ports):
        for family, keyword, _ in _FAMILIES:
            endpoints = port.endpoints[family]
            if endpoints:
                choice = _choice(keyword, port.protocol, endpoints)
                yield f"  chain {_chain(number, family)} {{ {choice} }} # {port.namespace}/{port.service}:{port.port}"


def _choice(keyword: str, protocol: str, endpoints: tuple[Endpoint, ...]) -> str:
    if len(endpoints) == 1:
        address = f"[{endpoints[0].ip}]" if keyword == "ip6" else endpoints[0].ip
        return f"meta l4proto {protocol} dnat {keyword} to {address}:{endpoints[0].port};"
    entries = ", ".join(f"{i} : {endpoint.ip} . {endpoint.port}" for i, endpoint in enumerate(endpoints))
    number = f"numgen random mod {len(endpoints)}"
    return f"meta l4proto {protocol} dnat {keyword} to {number} map {{ {entries} }};"


def _maps(ports: list[ServicePort]) -> Iterator[str]:
    for family, _, address_type in _FAMILIES:
        vips = [
            f"{port.vips[family]} . {port.protocol} . {port.port} : goto {_chain(number, family)}"
            for number, port in enumerate(ports)
            if family in port.vips and port.endpoints[family]
        ]
        nodes = [
            f"{port.protocol} . {port.node_port} : goto {_chain(number, family)}"
            for number, port in enumerate(ports)
            if port.node_port and port.endpoints[family]
        ]
        pods = sorted({endpoint.ip for port in ports for endpoint in port.endpoints[family]})
        yield _map(f"vips_{family}", f"{address_type} . inet_proto . inet_service : verdict", vips)
        yield _map(f"nodeport_targets_{family}", "inet_proto . inet_service : verdict", nodes)
        yield _set(f"loops_{family}", f"{address_type} . {address_type}", [f"{ip} . {ip}" for ip in pods])


def _map(name: str, kind: str, elements: list[str]) -> str:
    return f"  map {name} {{ type {kind}; {_elements(elements)}}}"


def _set(name: str, kind: str, elements: list[str]) -> str:
    return f"  set {name} {{ type {kind}; {_elements(elements)}}}"


def _elements(elements: list[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }}; " if elements else ""


def _hooks(node: NodePlan) -> Iterator[str]:
    for family, _, _ in _FAMILIES:
        yield f"  chain nodeports_{family} {{"
        yield f"    meta mark set meta mark | {MASQUERADE}"
        yield f"    meta l4proto . th dport vmap @nodeport_targets_{family}"
        yield f"    meta mark set meta mark & {hex(0xFFFFFFFF ^ int(MASQUERADE, 16))}"
        yield "  }"
    for hook in ("prerouting", "output"):
        yield f"  chain {hook} {{"
        yield f"    type nat hook {hook} priority -100; policy accept;"
        for family, keyword, _ in _FAMILIES:
            yield f"    {keyword} daddr . meta l4proto . th dport vmap @vips_{family}"
            yield f"    meta nfproto {family.lower()} fib daddr type local jump nodeports_{family}"
        yield "  }"
    yield from _leaving(node)
    for hook in ("forward", "output"):
        yield f"  chain refuse_{hook} {{"
        yield f"    type filter hook {hook} priority 0; policy accept;"
        yield f"    ip daddr {SERVICES4} reject"
        yield f"    ip6 daddr {SERVICES6} reject"
        yield "  }"


def _leaving(node: NodePlan) -> Iterator[str]:
    yield "  chain postrouting {"
    yield "    type nat hook postrouting priority 100; policy accept;"
    for keyword, family, own in (("ip", IPv4, node.ipv4), ("ip6", IPv6, node.ipv6)):
        yield f"    meta nfproto {family.lower()} meta mark & {MASQUERADE} != 0 snat {keyword} to {own}"
        yield f"    ct status dnat {keyword} saddr . {keyword} daddr @loops_{family} snat {keyword} to {own}"
    yield "  }"


def _chain(number: int, family: str) -> str:
    return f"port_{number}_{family}"
