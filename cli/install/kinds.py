"""Objects of an installation as the API addresses them."""

from typing import Any

from mesh.kube.resources import Resource

Document = dict[str, Any]

_CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Node"}

_ODD_PLURALS = {"NetworkPolicy": "networkpolicies"}


def resource_of(document: Document) -> Resource:
    """The collection that an object is in."""
    return resource(str(document["apiVersion"]), str(document["kind"]))


def resource(api_version: str, kind: str) -> Resource:
    """The collection of a kind."""
    group, _, version = api_version.rpartition("/")
    plural = _ODD_PLURALS.get(kind) or kind.lower() + "s"
    return Resource(group, version, plural, kind not in _CLUSTER_WIDE)


def name_of(document: Document) -> str:
    """As messages call it: `deployment culvert-system/culvert-controller`."""
    metadata = document["metadata"]
    namespace = metadata.get("namespace", "")
    return f"{document['kind'].lower()} {namespace + '/' if namespace else ''}{metadata['name']}"


DEPLOYMENTS = resource("apps/v1", "Deployment")
DAEMON_SETS = resource("apps/v1", "DaemonSet")
CORE_EVENTS = resource("v1", "Event")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", is_namespaced=False)
