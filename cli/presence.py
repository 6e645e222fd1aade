"""Whether a cluster has an installation, whoever made it, and which labels it goes by."""

from cli.install.kinds import DAEMON_SETS, Document
from mesh.kube.api import Api, Selection
from mesh.kube.errors import Forbidden

_NODE = Selection(DAEMON_SETS, label_selector="app.kubernetes.io/name=culvert-node")


async def honours_istio_labels(api: Api) -> bool | None:
    """Whether the cluster's installation honours istio.io/dataplane-mode; None: there is no installation.

    Who may not look for one is not told that there is none: False, which is how it is unless somebody has set it.
    """
    try:
        found = (await api.page(_NODE)).items
    except Forbidden:
        return False
    if not found:
        return None
    return any(map(goes_by_istio_labels, found))


def goes_by_istio_labels(node_set: Document) -> bool:
    """Whether the agents of a DaemonSet honour istio.io/dataplane-mode."""
    containers = node_set["spec"]["template"]["spec"]["containers"]
    return any("--istio-labels=true" in one["args"] for one in containers)
