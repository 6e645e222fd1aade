"""What translation reads besides the objects: settings of the mesh."""

from dataclasses import dataclass

from mesh.identity import DEFAULT_TRUST_DOMAIN


@dataclass(frozen=True, slots=True)
class Mesh:
    """Settings that show in resources. `istio_labels`: honour Istio's marks on pods."""

    cluster_id: str = "Kubernetes"
    cluster_domain: str = "cluster.local"
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    root_namespace: str = "culvert-system"
    istio_labels: bool = False

    def hostname(self, namespace: str, name: str) -> str:
        """The DNS name of a service."""
        return f"{name}.{namespace}.svc.{self.cluster_domain}"

    def service_name(self, namespace: str, name: str) -> str:
        """The resource name of a service."""
        return f"{namespace}/{self.hostname(namespace, name)}"
