"""Small meshes for tests of decisions: objects by keyword, a store fed through the wire, and the engine's tables."""

import importlib
from typing import Any

from mesh.addresses import to_bytes16
from mesh.reasons import Reason
from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, Changed, Update
from ztunnel.change import Change
from ztunnel.compile import Compiler
from ztunnel.decide import Destination, Peer, Route, RouteKind, Verdict
from ztunnel.endpoints import Here
from ztunnel.state import Store

HERE = Here(node="node-a", network="", cluster_id="Kubernetes")


def border() -> Any:
    """The engine's cffi module."""
    return importlib.import_module("engine._border")


def ip(text: str) -> bytes:
    return to_bytes16(text)


def packed(text: str) -> bytes:
    raw = to_bytes16(text)
    return raw[12:] if "." in text else raw


def workload(name: str, *addresses: str, namespace: str = "shop", node: str = "node-b", **more: Any) -> wire.Workload:
    services = more.pop("services", {})
    more.setdefault("uid", f"Kubernetes//Pod/{namespace}/{name}")
    more.setdefault("tunnel_protocol", wire.TunnelProtocol.HBONE)
    message = wire.Workload(
        name=name, namespace=namespace, node=node, addresses=[packed(address) for address in addresses], **more
    )
    for service, ports in services.items():
        for port, target in ports.items():
            message.services[service].ports.add(service_port=port, target_port=target)
    return message


def service(name: str, *vips: str, namespace: str = "shop", **more: Any) -> wire.Service:
    """VIPs may be ranges, and carry a network in front: `other:10.0.0.0/8`."""
    ports = more.pop("ports", {80: 8080})
    message = wire.Service(name=name, namespace=namespace, hostname=f"{name}.{namespace}", **more)
    for vip in vips:
        network, _, address = vip.rpartition("=")
        address, _, length = address.partition("/")
        entry = message.addresses.add(network=network, address=packed(address))
        if length:
            entry.length = int(length)
    for port, target in ports.items():
        message.ports.add(service_port=port, target_port=target)
    return message


def by_service(namespace_and_hostname: str, port: int = 15008) -> wire.GatewayAddress:
    namespace, hostname = namespace_and_hostname.split("/")
    return wire.GatewayAddress(
        hostname=wire.NamespacedHostname(namespace=namespace, hostname=hostname), hbone_mtls_port=port
    )


def by_address(address: str, network: str = "", port: int = 15008) -> wire.GatewayAddress:
    return wire.GatewayAddress(
        address=wire.NetworkAddress(network=network, address=packed(address)), hbone_mtls_port=port
    )


def authorization(name: str, *rules: security.Rule, namespace: str = "shop", **more: Any) -> security.Authorization:
    more.setdefault("scope", security.Scope.NAMESPACE)
    return security.Authorization(name=name, namespace=namespace, rules=rules, **more)


def resource(message: wire.Workload | wire.Service | security.Authorization) -> Changed:
    if isinstance(message, wire.Workload):
        return Changed(message.uid, "1", wire.Address(workload=message).SerializeToString())
    if isinstance(message, wire.Service):
        name = f"{message.namespace}/{message.hostname}"
        return Changed(name, "1", wire.Address(service=message).SerializeToString())
    return Changed(f"{message.namespace}/{message.name}", "1", message.SerializeToString())


class Lab:
    """A store and the engine's tables, kept in step through every change."""

    def __init__(self, *messages: Any, here: Here = HERE, restored: dict[bytes, int] | None = None) -> None:
        self.store = Store(here, restored)
        self._border = border()
        self._ffi, self._lib = self._border.ffi, self._border.lib
        self.compiler = Compiler(self.store, self._border)
        self.tables = self._keep(self.compiler.snapshot())
        self.put(*messages)

    def _keep(self, tables: Any) -> Any:
        return self._ffi.gc(tables, self._lib.cv_tables_destroy)

    def put(self, *messages: Any) -> list[Change]:
        policies = [message for message in messages if isinstance(message, security.Authorization)]
        others = [message for message in messages if not isinstance(message, security.Authorization)]
        return [
            self.apply(Update(type_url, "n", tuple(map(resource, part)), ()))
            for type_url, part in ((AUTHORIZATION_TYPE, policies), (ADDRESS_TYPE, others))
            if part
        ]

    def remove(self, *names: str, type_url: str = ADDRESS_TYPE) -> Change:
        return self.apply(Update(type_url, "n", (), names))

    def apply(self, update: Update) -> Change:
        change = self.store.apply(update)
        self.tables = self._keep(self.compiler.apply(change))
        return change

    def number(self, name: str) -> int:
        """By uid, by pod name in namespace shop, or by service or policy name."""
        pod = f"Kubernetes//Pod/shop/{name}"
        store = self.store
        return (
            store.workload_number(name)
            or store.workload_number(pod)
            or store.service_number(name)
            or store.policy_number(name)
        )

    def engine_route(self, source: int, destination: Destination, randomness: int) -> Route:
        given = self._endpoint(destination)
        ret = self._ffi.new("struct cv_route *")
        assert self._lib.cv_tables_route(self.tables, source, given, randomness, ret) == 0
        return Route(
            RouteKind(ret.kind),
            Reason(ret.reason),
            ret.workload,
            ret.service,
            ret.next_hop,
            ret.next_hop_service,
            _destination(ret.dial),
            _destination(ret.authority),
        )

    def engine_verdict(self, workload_number: int, peer: Peer, destination: Destination) -> Verdict:
        identity = self._ffi.NULL if peer.identity is None else self._ffi.new("char[]", peer.identity.encode())
        given = self._ffi.new("struct cv_peer *", {"identity": identity, "ip": list(peer.ip)})
        ret = self._ffi.new("struct cv_verdict *")
        where = self._endpoint(destination)
        self._lib.cv_tables_judge(self.tables, workload_number, given, where, ret)
        return Verdict(bool(ret.allow), ret.policy, ret.dry_run_policy)

    def engine_owner(self, address: str) -> int:
        owner: int = self._lib.cv_tables_by_address(self.tables, self._ffi.new("uint8_t[16]", list(ip(address))))
        return owner

    def _endpoint(self, destination: Destination) -> Any:
        return self._ffi.new("struct cv_endpoint *", {"ip": list(destination.ip), "port": destination.port})


def _destination(endpoint: Any) -> Destination:
    return Destination(bytes(endpoint.ip), endpoint.port)


def small_shop() -> Lab:
    """A client here, a service with one endpoint elsewhere, and a policy that refuses port 9090."""
    rule = security.Rule(clauses=[security.Clause(matches=[security.Match(destination_ports=[9090])])])
    return Lab(
        workload("client", "10.0.0.1", node="node-a"),
        workload("web-1", "10.0.1.1", services={"shop/web.shop": {80: 8080}}),
        service("web", "10.96.0.1", ports={80: 8080}),
        authorization("no-9090", rule, action=security.Action.DENY),
    )
