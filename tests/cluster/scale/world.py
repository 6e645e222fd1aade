"""The objects of a cluster of a given size, by number: what a pod is called and says follows from its number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mesh.kube import resources
from mesh.kube.resources import Resource

Document = dict[str, Any]

PODS_PER_SERVICE = 10
SERVICES_PER_NAMESPACE = 20
# Services without a selector: their endpoints are written by the churn.
OUTSIDE = 10
_POLICY_EVERY = 10


@dataclass(frozen=True, slots=True)
class Item:
    """An object to be made: where, and what, its status apart."""

    resource: Resource
    document: Document
    status: Document | None = None

    @property
    def namespace(self) -> str:
        """Its namespace, empty for an object that has none."""
        return str(self.document["metadata"].get("namespace", ""))

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.document["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class World:
    """A size, and the objects that follow from it."""

    pods: int
    nodes: int

    @property
    def services(self) -> int:
        """Services that select pods."""
        return -(-self.pods // PODS_PER_SERVICE)

    @property
    def policies(self) -> int:
        """AuthorizationPolicies, one for each tenth service."""
        return -(-self.services // _POLICY_EVERY)

    def namespaces(self) -> Iterator[Item]:
        """What has to be there before the rest."""
        for number in range(-(-self.services // SERVICES_PER_NAMESPACE)):
            yield Item(resources.NAMESPACES, _document("v1", "Namespace", f"scale-{number}"))

    def others(self) -> Iterator[Item]:
        """Everything else."""
        for number in range(self.nodes):
            labels = {"topology.kubernetes.io/zone": f"z{number % 3}"}
            yield Item(resources.NODES, _document("v1", "Node", f"node-{number}", labels=labels))
        for number in range(self.services):
            yield self.service(number)
        for number in range(OUTSIDE):
            yield from (outside_service(number), self.outside_slice(number, "100.64.0.1"))
        for number in range(self.policies):
            yield self.policy(number, "start")
        for number in range(self.pods):
            yield self.pod(number, 0, "start")

    def pod(self, number: int, generation: int, mark: str) -> Item:
        """A pod that runs and is captured; a later generation is the one that took its place."""
        service = number // PODS_PER_SERVICE
        labels = {"app": f"app-{service}", "version": mark}
        container = {
            "name": "app",
            "image": "none",
            "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
            "env": [{"name": f"VARIABLE_{place}", "value": "v" * 20} for place in range(10)],
        }
        document = _document(
            "v1",
            "Pod",
            f"app-{service}-{number:05x}-{generation}",
            _namespace(service),
            labels=labels,
            annotations={"culvert.io/capture": "enabled"},
        )
        document["spec"] = {
            "nodeName": f"node-{number % self.nodes}",
            "serviceAccountName": f"app-{service}",
            "automountServiceAccountToken": False,
            "containers": [container],
        }
        address = f"10.{number >> 16 | 16}.{number >> 8 & 255}.{number & 255}"
        ready = [{"type": "Ready", "status": "True"}]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready}
        return Item(resources.PODS, document, {"status": status})

    def service(self, number: int) -> Item:
        """A service of ten pods."""
        document = _document("v1", "Service", f"app-{number}", _namespace(number))
        ports = [{"name": "http", "port": 80, "targetPort": "http"}]
        document["spec"] = {"ports": ports, "selector": {"app": f"app-{number}"}}
        return Item(resources.SERVICES, document)

    def policy(self, number: int, mark: str) -> Item:
        """A policy for the pods of one service."""
        service = number * _POLICY_EVERY
        document = _document("security.istio.io/v1", "AuthorizationPolicy", f"policy-{number}", _namespace(service))
        source = {"principals": [f"cluster.local/ns/{_namespace(service)}/sa/{mark}"]}
        selector = {"matchLabels": {"app": f"app-{service}"}}
        document["spec"] = {"selector": selector, "rules": [{"from": [{"source": source}]}]}
        return Item(resources.AUTHORIZATION_POLICIES, document)

    def outside_slice(self, number: int, address: str) -> Item:
        """The one endpoint of a service whose endpoints are no pods."""
        labels = {"kubernetes.io/service-name": f"outside-{number}"}
        document = _document("discovery.k8s.io/v1", "EndpointSlice", f"outside-{number}", _namespace(0), labels=labels)
        document |= {"addressType": "IPv4", "ports": [{"name": "http", "port": 8080}]}
        document["endpoints"] = [{"addresses": [address], "conditions": {"ready": True}}]
        return Item(resources.ENDPOINT_SLICES, document)


def outside_service(number: int) -> Item:
    """A service without a selector."""
    document = _document("v1", "Service", f"outside-{number}", _namespace(0))
    document["spec"] = {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    return Item(resources.SERVICES, document)


def _namespace(service: int) -> str:
    return f"scale-{service // SERVICES_PER_NAMESPACE}"


def _document(api_version: str, kind: str, name: str, namespace: str = "", **metadata: Any) -> Document:
    found = {"name": name, **({"namespace": namespace} if namespace else {}), **metadata}
    return {"apiVersion": api_version, "kind": kind, "metadata": found}
