"""Pods, and endpoints that are no pods, to `istio.workload.Workload`."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from controller.index.captures import Captures
from controller.index.index import Index
from controller.index.objects import Endpoint, EndpointSlice, Labels, Node, Pod, Service
from controller.translate.authorizations import is_enforced_at_nodes
from controller.translate.facts import Mesh
from controller.translate.peers import policies_of_peers
from mesh.addresses import from_packed
from mesh.identity import DEFAULT_TRUST_DOMAIN
from mesh.wire.workload_pb2 import NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus, WorkloadType

# The first label that is there, even if empty, names the workload in metrics (Istio's convention).
_NAME_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


def pod_uid(mesh: Mesh, namespace: str, name: str) -> str:
    """The resource name of a pod's workload."""
    return f"{mesh.cluster_id}//Pod/{namespace}/{name}"


def pod_workload(pod: Pod, index: Index, captures: Captures, mesh: Mesh) -> Workload | None:
    """The workload of a pod; None if it has no address of its own (any more)."""
    if pod.is_terminal or not pod.addresses:
        return None
    message = Workload(
        uid=pod_uid(mesh, pod.namespace, pod.name),
        name=pod.name,
        namespace=pod.namespace,
        addresses=pod.addresses,
        trust_domain=_trust_domain(mesh),
        service_account=pod.service_account,
        node=pod.node,
        cluster_id=mesh.cluster_id,
        workload_name=pod.workload_name,
        workload_type=WorkloadType.POD,
        canonical_name=_first(pod.labels, _NAME_LABELS, pod.workload_name),
        canonical_revision=_first(pod.labels, _REVISION_LABELS, "latest"),
        authorization_policies=_policies(pod, index),
        network_mode=NetworkMode.HOST_NETWORK if pod.is_host_network else NetworkMode.STANDARD,
    )
    if not pod.is_ready or pod.is_terminating:
        message.status = WorkloadStatus.UNHEALTHY
    _announce_tunnel(message, pod, captures, mesh)
    _place(message, index.node(pod.node))
    for service in index.services_of(pod):
        ports = message.services[mesh.service_name(service.namespace, service.name)].ports
        ports.extend(_pod_ports(pod, service))
    return message


def slice_workloads(piece: EndpointSlice, service: Service | None, mesh: Mesh) -> Iterable[Workload]:
    """The workloads of a slice's endpoints that are no pods: nothing is known but an address and its ports."""
    if service is None or service.is_external:
        return
    ports = _slice_ports(piece, service)
    seen: set[str] = set()
    for endpoint in piece.endpoints:
        if not endpoint.pod and endpoint.address not in seen:
            seen.add(endpoint.address)
            yield _endpoint_workload(piece, endpoint, {mesh.service_name(service.namespace, service.name): ports}, mesh)


def aliases(message: Workload) -> list[str]:
    """The other names that a node may ask for a workload by: `network/address`."""
    if message.network_mode == NetworkMode.HOST_NETWORK:
        return []
    return [f"{message.network}/{from_packed(raw)}" for raw in message.addresses]


def _endpoint_workload(
    piece: EndpointSlice, endpoint: Endpoint, services: Mapping[str, PortList], mesh: Mesh
) -> Workload:
    return Workload(
        uid=f"{mesh.cluster_id}/discovery.k8s.io/EndpointSlice/{piece.namespace}/{piece.name}/{endpoint.address}",
        name=piece.name,
        namespace=piece.namespace,
        addresses=[ip_address(endpoint.address).packed],
        trust_domain=_trust_domain(mesh),
        cluster_id=mesh.cluster_id,
        services=services,
        status=WorkloadStatus.HEALTHY if endpoint.is_ready else WorkloadStatus.UNHEALTHY,
        # Its address may be anything's: it never stands for that address when somebody dials it directly.
        network_mode=NetworkMode.HOST_NETWORK,
    )


def _announce_tunnel(message: Workload, pod: Pod, captures: Captures, mesh: Mesh) -> None:
    is_marked = mesh.istio_labels and (pod.is_marked_captured or pod.speaks_hbone)
    # We never capture a pod on its node's network; whoever marks one says that something there speaks HBONE.
    if is_marked or (captures.is_captured(pod) and not pod.is_host_network):
        message.tunnel_protocol = TunnelProtocol.HBONE
        message.native_tunnel = mesh.istio_labels and pod.speaks_hbone


def _policies(pod: Pod, index: Index) -> list[str]:
    selecting = [policy.key for policy in index.policies_selecting(pod) if is_enforced_at_nodes(policy)]
    return [*sorted(selecting), *policies_of_peers(pod, index)]


def _pod_ports(pod: Pod, service: Service) -> Iterable[Port]:
    named = dict(reversed(pod.ports))
    for port in service.ports:
        target = named.get(port.target_name, 0) if port.target_name else port.target
        if target:
            yield Port(service_port=port.port, target_port=target)


def _slice_ports(piece: EndpointSlice, service: Service) -> PortList:
    by_name = {port.name: port.port for port in service.ports}
    return PortList(
        ports=[Port(service_port=by_name[name], target_port=target) for name, target in piece.ports if name in by_name]
    )


def _place(message: Workload, node: Node | None) -> None:
    if node is not None and (node.region or node.zone or node.subzone):
        message.locality.region = node.region
        message.locality.zone = node.zone
        message.locality.subzone = node.subzone


def _trust_domain(mesh: Mesh) -> str:
    """On the wire an absent trust domain is the default one."""
    return "" if mesh.trust_domain == DEFAULT_TRUST_DOMAIN else mesh.trust_domain


def _first(labels: Labels, names: Iterable[str], default: str) -> str:
    return next((labels[name] for name in names if name in labels), default)
