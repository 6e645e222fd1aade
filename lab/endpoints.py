"""Which addresses stand behind a service: what the endpoint controller of a cluster works out, as a pure function.

Endpoints come from the EndpointSlices of a service when there are any, else from the pods that its selector matches.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lab.manifests import Manifest

IPv4 = "IPv4"
IPv6 = "IPv6"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One address and port that serves."""

    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a service and who serves it, per address family."""

    namespace: str
    service: str
    protocol: str
    port: int
    node_port: int | None
    vips: Mapping[str, str]
    endpoints: Mapping[str, tuple[Endpoint, ...]]


@dataclass(frozen=True, slots=True)
class ServiceName:
    """A DNS name and its addresses."""

    name: str
    ips: tuple[str, ...]


def family_of(ip: str) -> str:
    """`IPv4` or `IPv6`, as Service objects write it."""
    return IPv6 if ":" in ip else IPv4


def is_headless(service: Manifest) -> bool:
    """Whether a service has no address of its own."""
    return bool(service["spec"].get("clusterIP") == "None")


def service_ports(
    services: Iterable[Manifest], pods: Iterable[Manifest], slices: Iterable[Manifest]
) -> list[ServicePort]:
    """Every port that a node must translate: those of services that have a VIP."""
    pods, slices = list(pods), list(slices)
    found = []
    for service in services:
        spec, metadata = service["spec"], service["metadata"]
        if is_headless(service) or spec.get("type") == "ExternalName":
            continue
        vips = {family_of(ip): ip for ip in spec.get("clusterIPs", ())}
        for port in spec.get("ports", ()):
            serving = _serving(service, port, pods, slices)
            found.append(
                ServicePort(
                    namespace=metadata["namespace"],
                    service=metadata["name"],
                    protocol=port.get("protocol", "TCP").lower(),
                    port=port["port"],
                    node_port=port.get("nodePort"),
                    vips=vips,
                    endpoints={f: tuple(sorted(e for e in serving if family_of(e.ip) == f)) for f in (IPv4, IPv6)},
                )
            )
    return found


def service_names(
    services: Iterable[Manifest], pods: Iterable[Manifest], slices: Iterable[Manifest], domain: str
) -> list[ServiceName]:
    """The names that the cluster's DNS answers: VIPs, the pods of headless services, and their host names."""
    pods, slices = list(pods), list(slices)
    names = []
    for service in services:
        metadata = service["metadata"]
        base = f"{metadata['name']}.{metadata['namespace']}.svc.{domain}"
        if service["spec"].get("type") == "ExternalName":
            continue
        if not is_headless(service):
            names.append(ServiceName(base, tuple(service["spec"].get("clusterIPs", ()))))
            continue
        names.append(ServiceName(base, tuple(sorted(_headless_ips(service, pods, slices)))))
        names += [
            ServiceName(f"{pod['spec']['hostname']}.{base}", tuple(_of_families(service, _pod_ips(pod))))
            for pod in _selected(service, pods)
            if pod["spec"].get("subdomain") == metadata["name"] and pod["spec"].get("hostname")
        ]
    return [name for name in names if name.ips]


def pod_is_ready(pod: Manifest) -> bool:
    """Whether a pod may be sent traffic."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _serving(service: Manifest, port: Manifest, pods: list[Manifest], slices: list[Manifest]) -> list[Endpoint]:
    own = _slices_of(service, slices)
    if own:
        return [endpoint for item in own for endpoint in _slice_endpoints(item, port)]
    found = []
    for pod in _selected(service, pods):
        number = _target_port(port, pod)
        if number is not None:
            found += [Endpoint(ip, number) for ip in _pod_ips(pod)]
    return found


def _selected(service: Manifest, pods: list[Manifest]) -> list[Manifest]:
    selector = service["spec"].get("selector") or {}
    if not selector:
        return []
    unready = bool(service["spec"].get("publishNotReadyAddresses"))
    return [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        and selector.items() <= pod["metadata"]["labels"].items()
        and (unready or pod_is_ready(pod))
    ]


def _target_port(port: Manifest, pod: Manifest) -> int | None:
    target: Any = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in pod["spec"].get("containers", ()):
        for offered in container.get("ports") or ():
            if offered.get("name") == target:
                return int(offered["containerPort"])
    return None


def _pod_ips(pod: Manifest) -> list[str]:
    return [entry["ip"] for entry in pod.get("status", {}).get("podIPs", ())]


def _slices_of(service: Manifest, slices: list[Manifest]) -> list[Manifest]:
    metadata = service["metadata"]
    return [
        item
        for item in slices
        if item["metadata"]["namespace"] == metadata["namespace"]
        and item["metadata"]["labels"].get("kubernetes.io/service-name") == metadata["name"]
    ]


def _slice_endpoints(item: Manifest, port: Manifest) -> list[Endpoint]:
    numbers = [p["port"] for p in item.get("ports") or () if (p.get("name") or "") == (port.get("name") or "")]
    ready = [e for e in item.get("endpoints") or () if (e.get("conditions") or {}).get("ready") is not False]
    return [Endpoint(ip, number) for e in ready for ip in e.get("addresses", ()) for number in numbers]


def _headless_ips(service: Manifest, pods: list[Manifest], slices: list[Manifest]) -> set[str]:
    own = _slices_of(service, slices)
    if own:
        return {
            ip
            for item in own
            for e in item.get("endpoints") or ()
            if (e.get("conditions") or {}).get("ready") is not False
            for ip in e.get("addresses", ())
        }
    return {ip for pod in _selected(service, pods) for ip in _of_families(service, _pod_ips(pod))}


def _of_families(service: Manifest, ips: Iterable[str]) -> list[str]:
    families = service["spec"].get("ipFamilies") or (IPv4, IPv6)
    return [ip for ip in ips if family_of(ip) in families]
