"""Services to `istio.workload.Service`."""

from controller.index.objects import Distribution, Namespace, Service
from controller.translate.facts import Mesh
from mesh.addresses import from_packed
from mesh.wire.workload_pb2 import IPFamilies, LoadBalancing, NetworkAddress, Port
from mesh.wire.workload_pb2 import Service as ServiceMessage

_ZONE = (LoadBalancing.NETWORK, LoadBalancing.REGION, LoadBalancing.ZONE)
_PREFERENCES = {
    Distribution.SAME_ZONE: _ZONE,
    Distribution.SAME_NODE: (*_ZONE, LoadBalancing.SUBZONE, LoadBalancing.NODE),
}

_FAMILIES: dict[tuple[int, ...], IPFamilies] = {(4,): IPFamilies.IPV4_ONLY, (6,): IPFamilies.IPV6_ONLY}


def service_message(service: Service, namespace: Namespace | None, mesh: Mesh) -> ServiceMessage | None:
    """The announced form of a service; None for one that exists in DNS only."""
    if service.is_external:
        return None
    return ServiceMessage(
        name=service.name,
        namespace=service.namespace,
        hostname=mesh.hostname(service.namespace, service.name),
        addresses=[NetworkAddress(address=vip) for vip in service.vips],
        ports=[
            Port(service_port=port.port, target_port=port.target, app_protocol=port.app_protocol)
            for port in service.ports
        ],
        load_balancing=_load_balancing(service, namespace),
        ip_families=_FAMILIES.get(service.families, IPFamilies.DUAL),
        canonical=True,  # a Kubernetes service owns its host name
    )


def aliases(message: ServiceMessage) -> list[str]:
    """The other names that a node may ask for a service by: `network/address`."""
    return [f"{vip.network}/{from_packed(vip.address)}" for vip in message.addresses]


def _load_balancing(service: Service, namespace: Namespace | None) -> LoadBalancing | None:
    health = LoadBalancing.ALLOW_ALL if service.publishes_not_ready else LoadBalancing.ONLY_HEALTHY
    if service.is_node_local:
        return LoadBalancing(routing_preference=[LoadBalancing.NODE], mode=LoadBalancing.STRICT, health_policy=health)
    chosen = service.distribution
    if chosen is None and namespace is not None:
        chosen = namespace.distribution
    preference = _PREFERENCES.get(chosen) if chosen else None
    if preference:
        return LoadBalancing(routing_preference=preference, mode=LoadBalancing.FAILOVER, health_policy=health)
    return LoadBalancing(health_policy=health) if service.publishes_not_ready else None
