"""Names of collections in the API, and their paths."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects as the API addresses it; `group` is empty for the core."""

    group: str
    version: str
    plural: str
    is_namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of a collection (of one namespace or all), an object, or a part of an object."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.is_namespaced and namespace:
            parts += ["namespaces", namespace]
        return "/" + "/".join([*parts, self.plural, *(part for part in (name, subresource) if part)])

    @property
    def api_version(self) -> str:
        """As objects write it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def __str__(self) -> str:
        """As people call it: `pods`, `gateways.gateway.networking.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


NAMESPACES = Resource("", "v1", "namespaces", is_namespaced=False)
NODES = Resource("", "v1", "nodes", is_namespaced=False)
PODS = Resource("", "v1", "pods")
SERVICES = Resource("", "v1", "services")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts")
SECRETS = Resource("", "v1", "secrets")
CONFIG_MAPS = Resource("", "v1", "configmaps")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices")
EVENTS = Resource("events.k8s.io", "v1", "events")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", is_namespaced=False)
DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", is_namespaced=False)
AUTHORIZATION_POLICIES = Resource("security.istio.io", "v1", "authorizationpolicies")
PEER_AUTHENTICATIONS = Resource("security.istio.io", "v1", "peerauthentications")
