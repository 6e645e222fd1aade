"""Documents of the core API to objects. Unknown fields of these kinds are Kubernetes' own business and ignored."""

import re
import sys
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Any

from controller.index.app_protocols import app_protocol
from controller.index.fields import Field, ObjectFault
from controller.index.objects import (
    GATEWAY_KINDS,
    NAMESPACED,
    Distribution,
    Endpoint,
    EndpointSlice,
    Kind,
    Namespace,
    Node,
    Object,
    Pod,
    Service,
    ServiceAccount,
    ServicePort,
)
from controller.index.parse_policies import authorization_policy, peer_authentication
from controller.index.parse_routes import gateway, route
from mesh.enrolment import CAPTURE_ANNOTATION, CAPTURED, ISTIO_ANNOTATION

_POLICIES = "security.istio.io"

# API groups by kind: a kind of the same name in another group is another kind.
_GROUPS = {
    Kind.ENDPOINT_SLICE: "discovery.k8s.io",
    Kind.AUTHORIZATION_POLICY: _POLICIES,
    Kind.PEER_AUTHENTICATION: _POLICIES,
    **dict.fromkeys(GATEWAY_KINDS, "gateway.networking.k8s.io"),
}

# As the definitions of security.istio.io have them.
_POLICY_VERSIONS = ("v1", "v1beta1")

# Names become parts of resource names and paths. Kubernetes allows no more than this.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?")

_CRON_JOB_RUN = re.compile(r"(.+)-\d{8,10}")


def kind_of(document: Any) -> Kind | None:
    """The kind of a document, None if the index has no place for it; raises ObjectFault if it has none at all."""
    field = Field(document)
    name = field["kind"].required_text()
    group, slash, _ = field["apiVersion"].required_text().partition("/")
    try:
        kind = Kind(name)
    except ValueError:
        return None
    return kind if _GROUPS.get(kind, "") == (group if slash else "") else None


def check_version(document: Any, kind: Kind) -> None:
    """Raise ObjectFault for a policy of a version that nobody has defined: no API server would take it."""
    field = Field(document)["apiVersion"]
    group, _, version = field.required_text().partition("/")
    if _GROUPS.get(kind) == _POLICIES and version not in _POLICY_VERSIONS:
        raise field.fault(f"{version!r} is no version of {group}: {' or '.join(_POLICY_VERSIONS)}")


def key_of(document: Any, kind: Kind) -> str:
    """The key of a document's object."""
    metadata = Field(document)["metadata"]
    name = metadata["name"].required_text()
    if not _NAME.fullmatch(name):
        raise metadata["name"].fault(f"{name!r} is not a name")
    if kind not in NAMESPACED:
        return name
    namespace = metadata["namespace"].text("default")
    if not _NAME.fullmatch(namespace):
        raise metadata["namespace"].fault(f"{namespace!r} is not a name")
    return sys.intern(f"{namespace}/{name}")


def parse(document: Any, kind: Kind) -> Object:
    """The object of a document; raises ObjectFault at the first field that is wrong."""
    key_of(document, kind)
    return _PARSERS[kind](Field(document))


def _namespace_name(field: Field) -> tuple[str, str]:
    metadata = field["metadata"]
    return metadata["namespace"].text("default"), metadata["name"].required_text()


def _namespace(field: Field) -> Namespace:
    metadata = field["metadata"]
    return Namespace(
        name=metadata["name"].required_text(),
        labels=metadata["labels"].labels(),
        distribution=_distribution(metadata["annotations"]["networking.istio.io/traffic-distribution"]),
    )


def _node(field: Field) -> Node:
    labels = field["metadata"]["labels"].labels()
    return Node(
        name=field["metadata"]["name"].required_text(),
        region=labels.get("topology.kubernetes.io/region", ""),
        zone=labels.get("topology.kubernetes.io/zone", ""),
        subzone=labels.get("topology.istio.io/subzone", ""),
    )


def _service_account(field: Field) -> ServiceAccount:
    return ServiceAccount(*_namespace_name(field))


def _pod(field: Field) -> Pod:
    namespace, name = _namespace_name(field)
    metadata, spec, status = field["metadata"], field["spec"], field["status"]
    labels = metadata["labels"].labels()
    phase = status["phase"].text()
    return Pod(
        namespace=namespace,
        name=name,
        labels=labels,
        uid=metadata["uid"].text(),
        node=spec["nodeName"].text(),
        service_account=spec["serviceAccountName"].text() or "default",
        addresses=_pod_addresses(status),
        ports=tuple(_container_ports(spec)),
        workload_name=_workload_name(metadata, name, labels),
        is_ready=_is_ready(status),
        is_terminal=phase in ("Succeeded", "Failed"),
        is_terminating=metadata["deletionTimestamp"].is_set,
        is_host_network=spec["hostNetwork"].boolean(),
        is_marked_captured=metadata["annotations"][ISTIO_ANNOTATION].text() == CAPTURED,
        is_annotated_captured=metadata["annotations"][CAPTURE_ANNOTATION].text() == CAPTURED,
        speaks_hbone=labels.get("networking.istio.io/tunnel") == "http",
    )


def _pod_addresses(status: Field) -> tuple[bytes, ...]:
    listed = [item["ip"] for item in status["podIPs"].items()] or [status["podIP"]]
    return tuple(address.address() for address in listed if address.text())


def _is_ready(status: Field) -> bool:
    for condition in status["conditions"].items():
        if condition["type"].text() == "Ready":
            return condition["status"].text() == "True"
    return False


def _container_ports(spec: Field) -> list[tuple[str, int]]:
    """Of what runs as long as the pod does: its containers, then the sidecars that start before them."""
    sidecars = (one for one in spec["initContainers"].items() if one["restartPolicy"].text() == "Always")
    found = []
    for container in (*spec["containers"].items(), *sidecars):
        for port in container["ports"].items():
            if port["name"].text() and port["protocol"].text("TCP") == "TCP":
                found.append((port["name"].text(), port["containerPort"].port()))
    return found


def _workload_name(metadata: Field, name: str, labels: dict[str, str]) -> str:
    """What made the pod, as users call it: Deployment rather than ReplicaSet, CronJob rather than its run."""
    if "service.istio.io/workload-name" in labels:
        return labels["service.istio.io/workload-name"]
    if not metadata["generateName"].text():
        return name
    owner = next((item for item in metadata["ownerReferences"].items() if item["controller"].boolean()), None)
    if owner is None:
        return name
    return _made_by(owner["kind"].text(), owner["name"].required_text(), labels)


def _made_by(kind: str, name: str, labels: dict[str, str]) -> str:
    """The name of an owner, or of what made that in turn, as labels and names show it."""
    match kind:
        case "ReplicaSet":
            # A Deployment's, or a Rollout's of Argo.
            for label in ("pod-template-hash", "rollouts-pod-template-hash"):
                if (template := labels.get(label)) and name.endswith(template):
                    return name.removesuffix(f"-{template}")
        case "ReplicationController":
            return labels.get("deploymentconfig") or name  # OpenShift's
        case "Job" if run := _CRON_JOB_RUN.fullmatch(name):
            return run.group(1)
    return name


def _service(field: Field) -> Service:
    namespace, name = _namespace_name(field)
    spec = field["spec"]
    vips = _vips(spec)
    distribution = _distribution(spec["trafficDistribution"])
    if distribution is None:
        distribution = _distribution(field["metadata"]["annotations"]["networking.istio.io/traffic-distribution"])
    return Service(
        namespace=namespace,
        name=name,
        ports=tuple(_service_port(port) for port in spec["ports"].items()),
        vips=vips,
        selector=spec["selector"].labels() or None,
        is_external=spec["type"].text() == "ExternalName",
        is_node_local=spec["internalTrafficPolicy"].text() == "Local",
        distribution=distribution,
        publishes_not_ready=spec["publishNotReadyAddresses"].boolean(),
        families=_families(spec, vips),
    )


def _vips(spec: Field) -> tuple[bytes, ...]:
    listed = list(spec["clusterIPs"].items()) or [spec["clusterIP"]]
    return tuple(item.address() for item in listed if item.text() not in ("", "None"))


def _families(spec: Field, vips: tuple[bytes, ...]) -> tuple[int, ...]:
    """As the API server would fill them in: what is written, else what the addresses say, else IPv4."""
    named = {"IPv4": 4, "IPv6": 6}
    written = list(spec["ipFamilies"].items())
    for item in written:
        if item.text() not in named:
            raise item.fault(f"{item.text()!r} is neither IPv4 nor IPv6")
    if written:
        return tuple(dict.fromkeys(named[item.text()] for item in written))
    if vips:
        return tuple(dict.fromkeys(4 if len(vip) == 4 else 6 for vip in vips))
    return (4, 6) if spec["ipFamilyPolicy"].text() in ("PreferDualStack", "RequireDualStack") else (4,)


def _service_port(field: Field) -> ServicePort:
    name, port = field["name"].text(), field["port"].port()
    target, target_name = field["targetPort"], ""
    number = port
    if isinstance(target.value, str) and not target.value.isdigit():
        number, target_name = 0, target.required_text()
    elif target.is_set and target.value != 0:
        number = target.port()
    protocol = field["protocol"].text("TCP")
    announced = app_protocol(port, name, protocol, field["appProtocol"].text())
    return ServicePort(name, port, number, target_name, announced)


def _distribution(field: Field) -> Distribution | None:
    """None if nothing is said; a value from a newer Kubernetes than this means no preference."""
    text = field.text().lower()
    if not text:
        return None
    names = {"preferclose": Distribution.SAME_ZONE, "prefersamezone": Distribution.SAME_ZONE}
    names["prefersamenode"] = Distribution.SAME_NODE
    return names.get(text, Distribution.ANY)


def _endpoint_slice(field: Field) -> EndpointSlice:
    namespace, name = _namespace_name(field)
    service = field["metadata"]["labels"].labels().get("kubernetes.io/service-name", "")
    if field["addressType"].text("IPv4") == "FQDN":
        service = ""
    ports = [
        (port["name"].text(), port["port"].port())
        for port in field["ports"].items()
        if port["port"].is_set and port["protocol"].text("TCP") == "TCP"
    ]
    endpoints = (_endpoint(item, namespace) for item in field["endpoints"].items()) if service else ()
    return EndpointSlice(
        namespace=namespace,
        name=name,
        service=sys.intern(f"{namespace}/{service}") if service else "",
        ports=tuple(ports),
        endpoints=tuple(endpoint for endpoint in endpoints if endpoint is not None),
    )


def _endpoint(field: Field, namespace: str) -> Endpoint | None:
    target = field["targetRef"]
    pod = ""
    if target["kind"].text() == "Pod":
        pod = sys.intern(f"{target['namespace'].text(namespace)}/{target['name'].required_text()}")
    address = next(iter(field["addresses"].texts()), "")
    if not address and not pod:
        return None
    try:
        text = str(ip_address(address)) if address else ""
    except ValueError:
        raise ObjectFault(f"{field.path}.addresses[0]", f"{address!r} is not an IP address") from None
    return Endpoint(address=text, is_ready=field["conditions"]["ready"].boolean(True), pod=pod)


_PARSERS: dict[Kind, Callable[[Field], Object]] = {
    Kind.NAMESPACE: _namespace,
    Kind.NODE: _node,
    Kind.POD: _pod,
    Kind.SERVICE_ACCOUNT: _service_account,
    Kind.SERVICE: _service,
    Kind.ENDPOINT_SLICE: _endpoint_slice,
    Kind.AUTHORIZATION_POLICY: authorization_policy,
    Kind.PEER_AUTHENTICATION: peer_authentication,
    Kind.GATEWAY: gateway,
    **{kind: partial(route, kind) for kind in GATEWAY_KINDS - {Kind.GATEWAY}},
}
