"""The address plan of a lab. Labs share it: each is an island of namespaces of its own.

fabric    172.30.0.0/16   fd00:30::/64       the controller has .0.1, node n has .1.n
pods      10.244.n.0/24   fd00:244:0:n::/64  per node
services  10.96.0.0/16    fd00:96::/112
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

FABRIC4 = IPv4Network("172.30.0.0/16")
FABRIC6 = IPv6Network("fd00:30::/64")
PODS4 = IPv4Network("10.244.0.0/16")
PODS6 = IPv6Network("fd00:244::/48")
SERVICES4 = IPv4Network("10.96.0.0/16")
SERVICES6 = IPv6Network("fd00:96::/112")

CONTROLLER4 = FABRIC4[1]
CONTROLLER6 = FABRIC6[1]

# A pod's way out: an address that exists nowhere, answered by a permanent neighbour entry.
GATEWAY4 = IPv4Address("169.254.1.1")
GATEWAY6 = IPv6Address("fe80::1")
# Where a node's name server listens, the address that node-local caches use.
DNS4 = IPv4Address("169.254.20.10")

MTU = 1500
# Between machines: room for VXLAN over IPv6 (70 bytes), also where the network below has 1450 or 1480 itself.
SPAN_MTU = 1380

MAX_NODES = 200
NODE_PORTS = range(30000, 32768)


class PlanExhausted(Exception):
    """The lab has no address or port left for one more of these."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """The addresses of one node."""

    index: int

    @property
    def ipv4(self) -> IPv4Address:
        """The node's own address on the fabric."""
        return FABRIC4[256 + self.index]

    @property
    def ipv6(self) -> IPv6Address:
        """The node's own IPv6 address on the fabric."""
        return FABRIC6[0x10000 + self.index]

    @property
    def pods4(self) -> IPv4Network:
        """The addresses of its pods."""
        return IPv4Network((int(PODS4[0]) + (self.index << 8), 24))

    @property
    def pods6(self) -> IPv6Network:
        """The IPv6 addresses of its pods."""
        return IPv6Network((int(PODS6[0]) + (self.index << 64), 64))

    def pod(self, number: int) -> tuple[IPv4Address, IPv6Address]:
        """Both addresses of its pod number `number`."""
        return self.pods4[number], self.pods6[number]


class Numbers:
    """Hands out numbers of a range, the longest unused first, as address managers of clusters do."""

    def __init__(self, numbers: range, what: str) -> None:
        self._range = numbers
        self._what = what
        self._taken: set[int] = set()
        self._next = 0

    def allocate(self) -> int:
        """A free number; raises PlanExhausted."""
        for step in range(len(self._range)):
            at = (self._next + step) % len(self._range)
            if self._range[at] not in self._taken:
                self._next = at + 1
                self._taken.add(self._range[at])
                return self._range[at]
        raise PlanExhausted(f"no {self._what} is left (there are {len(self._range)})")

    def take(self, number: int) -> bool:
        """Take this very number; False when it is another one's or out of range."""
        if number in self._taken or number not in self._range:
            return False
        self._taken.add(number)
        return True

    def release(self, number: int) -> None:
        """Give a number back."""
        self._taken.discard(number)


def pod_numbers() -> Numbers:
    """The pods of one node."""
    return Numbers(range(2, 255), "pod address on this node")


def service_numbers() -> Numbers:
    """The services of a lab; number n has address n of both service ranges."""
    return Numbers(range(10, SERVICES4.num_addresses - 1), "service address")


def node_ports() -> Numbers:
    """The NodePorts of a lab."""
    return Numbers(NODE_PORTS, "NodePort")
