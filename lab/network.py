"""The network of a lab as a whole: fabric and nodes, and what services look like on each node right now."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from lab import dns, namespaces, nftables, resolving, wire
from lab.endpoints import ServiceName, ServicePort
from lab.nodes import Node
from lab.paths import LabPaths, write_text
from lab.plan import MAX_NODES, MTU, NodePlan, PlanExhausted
from lab.process import BASE_ENVIRONMENT, Launch
from lab.record import Record
from lab.supervision import Supervised

FABRIC = "fabric"


class Network:
    """Owns the fabric's and the nodes' namespaces and name servers."""

    def __init__(self, paths: LabPaths, record: Record, mtu: int = MTU) -> None:
        self._paths = paths
        self._record = record
        self._mtu = mtu
        self.nodes: dict[str, Node] = {}
        self.name_servers: dict[str, Supervised] = {}
        self._wired: set[str] = set()
        self._adding = asyncio.Lock()  # each new node is joined to all that are there
        self._rules: dict[str, str] = {}
        self._names = ""
        self._generation = 0  # of the names; each has a name of its own in the file
        self._publishing = asyncio.Lock()
        self._fabric_is_routed = False
        self.fabric = record.claim_netns(FABRIC)

    @property
    def local_nodes(self) -> list[Node]:
        """The nodes that this machine runs, from when their namespace can be entered."""
        return [node for node in self.nodes.values() if node.name in self._wired]

    @property
    def fabric_path(self) -> Path:
        """The namespace between the nodes, where the controller runs."""
        return namespaces.path_of(self.fabric)

    def claim_pod_netns(self, node: Node, namespace: str, name: str) -> str:
        """A free name for a pod's namespace, on record before it exists."""
        return self._record.claim_netns(node.name, namespace, name)

    def release_netns(self, name: str) -> None:
        """A pod's namespace is gone."""
        self._record.release_netns(name)

    async def make_fabric(self, has_controller: bool = True) -> None:
        """The bridge; before any node."""
        make = wire.make_fabric
        self._fabric_is_routed = has_controller
        await asyncio.to_thread(lambda: make(namespaces.create(self.fabric), self._mtu, has_controller))
        self._record.name(FABRIC, self.fabric)
        self._write_names("")

    async def add_remote_node(self, name: str, index: int | None = None) -> Node:
        """Have the local nodes reach a node of another machine."""
        async with self._adding:
            node = Node(self._paths.lab, name, self._plan(index), netns_name="", is_local=False)
            self.nodes[name] = node
            await asyncio.to_thread(self._route_to, node.plan)
        return node

    async def add_node(self, name: str, index: int | None = None) -> Node:
        """Make a node and join it to the others; its index is the next one, unless another machine has chosen it."""
        async with self._adding:
            node = Node(self._paths.lab, name, self._plan(index), self._record.claim_netns(name), self._mtu)
            self._record.claim_key(name)
            others = list(self.nodes.values())
            self.nodes[name] = node
            await asyncio.to_thread(self._wire_node, node, others)
            self._wired.add(name)
        self._record.name(f"node/{name}", node.netns_name)
        log = self._paths.logs / "nodes" / name / "dns.log"
        order = Launch(argv=dns.command(self._hosts), namespaces={"net": str(node.netns)}, env=BASE_ENVIRONMENT)
        self.name_servers[name] = Supervised(f"dns on {name}", order, log)
        return node

    async def publish(self, view: Callable[[], tuple[list[ServicePort], list[ServiceName]]]) -> None:
        """Show every node the services as they are now; nodes whose view is the same are left alone.

        `view` is asked when it is this call's turn, so that an older view never comes after a newer one.
        """
        async with self._publishing:
            ports, service_names = view()
            text = dns.hosts(service_names)
            if self._names != text:
                self._write_names(text)
                for server in self.name_servers.values():
                    server.signal_when_settled(signal.SIGHUP, dns.SETTLE_S)
            await asyncio.gather(*(self._publish_rules(node, ports) for node in self.local_nodes))

    async def until_names_are_read(self) -> None:
        """Return when the name server of every local node answers with the names that were published last."""
        servers = [node for node in self.local_nodes if node.name in self.name_servers]
        await asyncio.gather(*(resolving.until_read(node.netns, lambda: self._generation) for node in servers))

    def _write_names(self, text: str) -> None:
        self._names = text
        self._generation += 1
        write_text(self._paths.scratch, self._hosts, f"{dns.MARKER_IP} {resolving.marker(self._generation)}\n{text}")

    async def _publish_rules(self, node: Node, ports: list[ServicePort]) -> None:
        text = nftables.render(node.plan, ports)
        if self._rules.get(node.name) != text:
            await asyncio.to_thread(wire.load_rules, node.netns, text)
            self._rules[node.name] = text

    @property
    def _hosts(self) -> Path:
        return self._paths.root / "dns.hosts"

    def _wire_node(self, node: Node, others: list[Node]) -> None:
        wire.make_node(self.fabric_path, namespaces.create(node.netns_name), node.plan, self._mtu)
        for other in others:
            wire.route_to(node.netns, other.plan)
        self._route_to(node.plan)

    def _route_to(self, target: NodePlan) -> None:
        """From every other local node, and from the fabric where that has an address."""
        if self._fabric_is_routed:
            wire.route_to(self.fabric_path, target)
        for node in self.local_nodes:
            if node.plan != target:
                wire.route_to(node.netns, target)

    def _plan(self, index: int | None) -> NodePlan:
        if len(self.nodes) >= MAX_NODES:
            raise PlanExhausted(f"a lab has at most {MAX_NODES} nodes")
        return NodePlan(len(self.nodes) + 1 if index is None else index)
