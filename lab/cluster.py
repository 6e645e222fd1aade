"""What the API server and the controllers of a cluster do with objects, for one lab.

The one writer of all objects. `apply` and `delete` answer per object; a refused object leaves its last good version in
force. Services are worked out anew whenever something they depend on has changed, in batches.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from lab import names
from lab.capture import MeshRules
from lab.cleanup import key_fault
from lab.dns import CLUSTER_DOMAIN
from lab.endpoints import ServiceName, ServicePort, service_names, service_ports
from lab.manifests import ACTED_ON, CLUSTER_SCOPED, NOT_RUN, Manifest, Ref, envelope_fault, normalise, ref_of
from lab.network import Network
from lab.paths import LabPaths
from lab.services import InvalidObject, ServiceAddresses, slice_faults
from lab.span.machines import Machines
from lab.store import Store
from lab.workloads import PodSet
from mesh.addresses import with_port

# Changes that come together are worked out once; short beside the time in which a pod becomes ready.
BATCH_S = 0.02

NodeAdded = Callable[[str], Awaitable[None]]

_ORDER = ("Namespace", "Node", "ServiceAccount", "ConfigMap", "Service", "EndpointSlice")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object."""

    object: str
    outcome: str
    reason: str = ""
    unused: tuple[str, ...] = field(default=())


class Cluster:
    """All objects of a lab and what follows from them."""

    def __init__(
        self, paths: LabPaths, network: Network, node_added: NodeAdded, mesh_rules: MeshRules, machines: Machines
    ) -> None:
        self._paths = paths
        self._store = Store(paths)
        self._network = network
        self._node_added = node_added
        self._addresses = ServiceAddresses()
        self._stale = asyncio.Event()
        self.pods = PodSet(paths, self._store, network, self._stale.set, mesh_rules, machines)

    async def keep_services(self) -> None:
        """Work services out anew after every change; lasts as long as the lab."""
        while True:
            await self._stale.wait()
            await asyncio.sleep(BATCH_S)
            self._stale.clear()
            await self.publish_services()

    async def publish_services(self) -> None:
        """Show all nodes the services as they are now."""
        await self._network.publish(self._services_now)

    async def until_services_are_shown(self) -> None:
        """Return when rules and names of every local node are those of the services as they are now."""
        await self.publish_services()
        await self._network.until_names_are_read()

    def _services_now(self) -> tuple[list[ServicePort], list[ServiceName]]:
        services, pods = self._store.of_kind("Service"), self._store.of_kind("Pod")
        slices = self._store.of_kind("EndpointSlice")
        ports = service_ports(services, pods, slices)
        return ports, service_names(services, pods, slices, CLUSTER_DOMAIN)

    async def apply(self, manifests: Iterable[Manifest]) -> list[Outcome]:
        """Take objects in the order in which they depend on each other."""
        outcomes = []
        for manifest in sorted(manifests, key=_position):
            fault = envelope_fault(manifest)
            if fault:
                outcomes.append(Outcome("object", "refused", fault))
                continue
            item = normalise(manifest)
            try:
                outcome, unused = await self._take(item)
                outcomes.append(Outcome(str(ref_of(item)), outcome, unused=unused))
            except InvalidObject as error:
                outcomes.append(Outcome(str(ref_of(item)), "refused", str(error)))
        return outcomes

    async def delete(self, ref: Ref, grace_s: float | None) -> None:
        """Remove an object, a namespace with all it holds; raises KeyError and InvalidObject."""
        if ref.kind == "Pod":
            await self.pods.delete(ref, grace_s)
            return
        found = self._store.get(ref)
        if found is None:
            raise KeyError(ref)
        if ref.kind == "Node":
            raise InvalidObject(["the nodes of a lab stay as long as the lab: take it down and up without this one"])
        if ref.kind == "Namespace":
            held = self._store.in_namespace(ref.name)
            await asyncio.gather(*(self.delete(item, grace_s) for item in held))
        if ref.kind == "Service":
            self._addresses.release(found)
        self._store.remove(ref)
        self._stale.set()
        if ref.kind == "Namespace":
            self._write_namespaces()

    async def label(self, ref: Ref, changes: dict[str, str | None], field_name: str = "labels") -> Outcome:
        """Set (or with None remove) labels or annotations of an object; raises KeyError and InvalidObject."""
        found = self._store.get(ref)
        if found is None:
            raise KeyError(ref)
        manifest = copy.deepcopy(self.pods.applied(ref) if ref.kind == "Pod" else found)
        values = {**manifest["metadata"][field_name], **changes}
        manifest["metadata"][field_name] = {k: v for k, v in values.items() if v is not None}
        return (await self.apply([manifest]))[0]

    def watch(self, changed: Callable[[], None]) -> None:
        """Have every change of an object heard."""
        self._store.changed = changed

    def view(self, node: str) -> dict[Ref, Manifest]:
        """All objects as the machine of a node elsewhere needs them; of its own pods it knows the status itself."""
        return {ref: _for_node(item, node) for ref in self._store if (item := self._store.get(ref)) is not None}

    def mirror(self, put: list[Manifest], gone: Iterable[Ref]) -> dict[Ref, str]:
        """Take objects as the home of the lab has them; returns the pods that cannot be run here, with why."""
        refused = {}
        local = {node.name for node in self._network.local_nodes}
        for item in sorted(put, key=_position):
            if item["kind"] != "Pod" or item["spec"].get("nodeName") not in local:
                self._store.put(item)
                continue
            try:
                self.pods.mirror(item)
            except ValueError as error:
                refused[ref_of(item)] = str(error)
        for ref in gone:
            if self.pods.has(ref):
                self.pods.forget(ref)
            else:
                self._store.remove(ref)
        self._write_namespaces()
        self._stale.set()
        return refused

    def refs(self) -> list[Ref]:
        """All objects."""
        return list(self._store)

    def objects(self) -> list[str]:
        """The names of all objects."""
        return [str(ref) for ref in self._store]

    def object(self, ref: Ref) -> Manifest | None:
        """One object as it stands, with its status."""
        return self._store.get(ref)

    def services(self) -> list[dict[str, Any]]:
        """For `lab status`."""
        items = self._store.of_kind("Service")
        slices, pods = self._store.of_kind("EndpointSlice"), self._store.of_kind("Pod")
        behind = {(p.namespace, p.service, p.port): p.endpoints for p in service_ports(items, pods, slices)}
        return [
            {
                "namespace": item["metadata"]["namespace"],
                "name": item["metadata"]["name"],
                "type": item["spec"].get("type"),
                "ips": [ip for ip in item["spec"].get("clusterIPs", ()) if ip != "None"],
                "ports": [
                    {
                        "port": port["port"],
                        "node_port": port.get("nodePort"),
                        "endpoints": [
                            with_port(ip_address(e.ip), e.port)
                            for found in behind.get(_port_key(item, port), {}).values()
                            for e in found
                        ],
                    }
                    for port in item["spec"].get("ports") or ()
                ],
            }
            for item in items
        ]

    async def _take(self, item: Manifest) -> tuple[str, tuple[str, ...]]:
        ref = ref_of(item)
        if ref.namespace:
            self._ensure_namespace(ref.namespace)
        match ref.kind:
            case "Pod":
                return self.pods.apply(item)
            case "Node":
                return await self._take_node(item)
            case "Service":
                return self._take_service(ref, item), ()
            case "Namespace":
                return self._take_namespace(item), ()
            case "EndpointSlice":
                faults = list(slice_faults(item))
                if faults:
                    raise InvalidObject(faults)
                self._stale.set()
        if ref.kind in NOT_RUN:
            raise InvalidObject([f"a lab runs Pods, no {ref.kind}s: write the Pods themselves"])
        unused = () if ref.kind in ACTED_ON else (f"the kind {ref.kind}",)
        return self._put(item), unused

    def _put(self, item: Manifest) -> str:
        known = self._store.get(ref_of(item)) is not None
        if not self._store.put(item):
            return "unchanged"
        return "configured" if known else "created"

    async def _take_node(self, item: Manifest) -> tuple[str, tuple[str, ...]]:
        name = item["metadata"]["name"]
        known = name in self._network.nodes
        fault = names.node_fault(name) or (None if known else key_fault(self._paths.lab, name))
        if fault:
            raise InvalidObject([fault])
        if not known:
            await self._node_added(name)
        outcome = self._put(self._network.nodes[name].manifest(item))
        self._write_namespaces()
        self._stale.set()
        return outcome, ()

    def _take_service(self, ref: Ref, item: Manifest) -> str:
        self._stale.set()
        return self._put(self._addresses.admit(item, self._store.get(ref)))

    def _take_namespace(self, item: Manifest) -> str:
        name = item["metadata"]["name"]
        labels = {"kubernetes.io/metadata.name": name, **item["metadata"]["labels"]}
        taken = {**item, "metadata": {**item["metadata"], "labels": labels}, "status": {"phase": "Active"}}
        outcome = self._put(taken)
        account = Ref("ServiceAccount", name, "default")
        if self._store.get(account) is None:
            metadata = {"name": "default", "namespace": name}
            self._put(normalise({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))
        self._write_namespaces()
        return outcome

    def _ensure_namespace(self, name: str) -> None:
        if self._store.get(Ref("Namespace", "", name)) is None:
            self._take_namespace(normalise({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))

    def _write_namespaces(self) -> None:
        """What each node's agent reads of namespaces."""
        spaces = {m["metadata"]["name"]: {"labels": m["metadata"]["labels"]} for m in self._store.of_kind("Namespace")}
        for node in self._network.local_nodes:
            self._paths.write(node.runtime / "namespaces.json", spaces)


def _port_key(service: Manifest, port: Manifest) -> tuple[str, str, int]:
    return service["metadata"]["namespace"], service["metadata"]["name"], port["port"]


def _for_node(item: Manifest, node: str) -> Manifest:
    if item["kind"] != "Pod" or item["spec"].get("nodeName") != node:
        return item
    return {**item, "status": {"podIPs": item["status"]["podIPs"]}}


def _position(manifest: Any) -> int:
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind in _ORDER:
        return _ORDER.index(kind)
    return len(_ORDER) + (kind == "Pod")


def parse_ref(kind: str, path: str) -> Ref:
    """`Pod`, `shop/web` as a Ref; the kind in any case, `default` when no namespace is given."""
    known = ("Pod", "Service", "Namespace", "Node", "ServiceAccount", "EndpointSlice", "ConfigMap",
             "AuthorizationPolicy", "PeerAuthentication")  # fmt: skip
    exact = next((name for name in known if kind.lower() in (name.lower(), f"{name.lower()}s")), kind)
    exact = {"authorizationpolicies": "AuthorizationPolicy", "svc": "Service", "ns": "Namespace"}.get(
        kind.lower(), exact
    )
    namespace, slash, name = path.rpartition("/")
    if exact in CLUSTER_SCOPED:
        return Ref(exact, "", name)
    return Ref(exact, namespace if slash else "default", name)
