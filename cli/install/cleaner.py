"""The DaemonSet that removes from every node what outlives the agent: programs, pins, CNI entry, runtime directory."""

import copy

from cli.install import record
from cli.install.kinds import Document
from mesh.kube.documents import annotations_of

CLEANER = "culvert-node-removal"


def cleaner_of(node_set: Document) -> Document:
    """A DaemonSet with the agent's image, place and rights that removes what the agent has put onto its node.

    It is ready on a node when that is done: the work is an init container's, what follows only waits to be removed.
    """
    pod = copy.deepcopy(node_set["spec"]["template"]["spec"])
    (agent,) = [one for one in pod["containers"] if one["name"] == "agent"]
    unneeded = {"token", "roots"}  # of a controller that may be gone
    for key in ("readinessProbe", "livenessProbe", "startupProbe", "lifecycle", "resources"):
        agent.pop(key, None)
    agent["volumeMounts"] = [one for one in agent["volumeMounts"] if one["name"] not in unneeded]
    has_cni = any(one["name"] == "cni-conf" for one in agent["volumeMounts"])
    waiter = copy.deepcopy(agent)
    agent |= {"name": "remove", "command": ["/bin/sh", "-ec", _script(has_cni)], "args": []}
    waiter |= {"name": "done", "command": ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"], "args": []}
    waiter["volumeMounts"] = []
    waiter["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod |= {"initContainers": [agent], "containers": [waiter], "terminationGracePeriodSeconds": 1}
    # It asks nothing of the API server, and on a node that comes back late the account may be gone before it.
    pod["automountServiceAccountToken"] = False
    pod["volumes"] = [one for one in pod["volumes"] if one["name"] not in unneeded]
    labels = {**node_set["spec"]["template"]["metadata"]["labels"], "app.kubernetes.io/name": CLEANER}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": CLEANER,
            "namespace": node_set["metadata"]["namespace"],
            "labels": {**record.LABELS, "app.kubernetes.io/name": CLEANER},
        },
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": CLEANER}},
            "template": {
                "metadata": {"labels": labels, "annotations": _apparmor(node_set)},
                "spec": pod,
            },
        },
    }


def _script(has_cni: bool) -> str:
    """Once the agent has ended (it would put back what is removed): programs and pins, CNI entry, runtime directory."""
    python = "/opt/culvert/bin/python -m daemonset"
    runtime = '/run/culvert/"$NODE_NAME"'
    lines = [f'until {python} unload --key "$NODE_NAME" --runtime {runtime}; do sleep 1; done']
    if has_cni:
        lines.append(
            f'{python} remove-cni --key "$NODE_NAME" --cni-conf-dir /run/host/cni/net.d --cni-bin-dir /run/host/cni/bin'
        )
    lines.append(f"rm -rf {runtime}")
    return "\n".join(lines)


def _apparmor(node_set: Document) -> dict[str, str]:
    prefix = "container.apparmor.security.beta.kubernetes.io/"
    given = annotations_of(node_set["spec"]["template"]).get(f"{prefix}agent")
    return {f"{prefix}remove": given, f"{prefix}done": given} if given else {}
