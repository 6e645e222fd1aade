"""Cleaning nodes: the agents end, then a DaemonSet of their image removes from every node what outlives processes.

A node whose kubelet does not answer is not waited for. Its part of that DaemonSet stays and works when the node is
back, and so does what it needs (namespace, account, record), until the command is repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cli.install import waiting
from cli.install.cleaner import CLEANER, cleaner_of
from cli.install.kinds import DAEMON_SETS, Document
from cli.install.waiting import Say, TimedOut
from mesh.kube.api import Api, Selection
from mesh.kube.errors import NotFound
from mesh.kube.resources import NODES, PODS

NODE = "culvert-node"


async def silent_nodes(api: Api) -> dict[str, str]:
    """Nodes whose kubelet does not answer, and since when: waiting for them may take forever."""
    found: dict[str, str] = {}
    async for page in api.pages(Selection(NODES)):
        for node in page:
            for one in waiting.conditions_of(node):
                if one["type"] == "Ready" and one["status"] == "Unknown":
                    found[node["metadata"]["name"]] = f"does not answer since {one.get('lastTransitionTime', '?')}"
    return found


async def pods_gone(api: Api, namespace: str, name: str) -> list[str]:
    """Pods that still are there although they should not be, on nodes that answer."""
    silent = await silent_nodes(api)
    pods = await api.page(Selection(PODS, namespace, label_selector=f"app.kubernetes.io/name={name}"))
    places = [(pod["metadata"]["name"], pod["spec"].get("nodeName", "?")) for pod in pods.items]
    return [f"pod {name} on {node} ends" for name, node in places if node not in silent]


@dataclass(frozen=True, slots=True)
class Cleaning:
    """The nodes of one installation."""

    api: Api
    namespace: str
    say: Say
    timeout_s: float

    async def node_set(self) -> Document | None:
        """The agents' DaemonSet."""
        return await self._set(NODE)

    async def start(self, node_set: Document) -> None:
        """End the agents and have their nodes cleaned."""
        await self.api.apply(DAEMON_SETS, cleaner_of(node_set), self.namespace)
        await self.api.delete(DAEMON_SETS, NODE, self.namespace, uid=node_set["metadata"]["uid"])

    async def is_under_way(self) -> bool:
        """Whether nodes are being cleaned, or were, by this command or one before."""
        return await self._set(CLEANER) is not None

    async def wait(self) -> tuple[int, list[str]]:
        """Return when every node that answers is clean, or at the deadline: how many are, and which are not and why."""
        late: list[str] = []
        try:
            await waiting.until("nodes to be cleaned", self._missing, self.timeout_s, self.say)
        except TimedOut as fault:
            late = [str(fault)]
        silent, pods = await silent_nodes(self.api), await self._pods()
        dirty = {node: _why(pod, silent, self.timeout_s) for node, pod in pods.items() if not waiting.is_ready(pod)}
        lines = [f"node {name}: programs, pins and CNI entry ({why})" for name, why in sorted(dirty.items())]
        return len(pods) - len(dirty), lines or late

    async def finish(self) -> str:
        """Take the cleaning DaemonSet away; what stays of it, empty: nothing."""
        found = await self._set(CLEANER)
        if found is not None:
            await self.api.delete(DAEMON_SETS, CLEANER, self.namespace, uid=found["metadata"]["uid"])
        try:
            gone = partial(pods_gone, self.api, self.namespace, CLEANER)
            await waiting.until("pods to end", gone, self.timeout_s, self.say)
        except TimedOut as late:
            return str(late)
        return ""

    async def _missing(self) -> Sequence[str]:
        cleaner = await self._set(CLEANER)
        if cleaner is None or not waiting.is_observed(cleaner):
            return ["the DaemonSet's pods are not made yet"]
        silent, pods = await silent_nodes(self.api), await self._pods()
        wanted = int(cleaner.get("status", {}).get("desiredNumberScheduled", 0))
        ready = sum(waiting.is_ready(pod) for pod in pods.values())
        waited_for = [node for node, pod in pods.items() if not waiting.is_ready(pod) and node not in silent]
        if len(pods) >= wanted and not waited_for:
            return []
        return [f"{ready} of {wanted} nodes", *await waiting.pods_in_trouble(self.api, self.namespace, CLEANER)]

    async def _pods(self) -> dict[str, Document]:
        """The cleaning pods by node."""
        pods = await self.api.page(Selection(PODS, self.namespace, label_selector=f"app.kubernetes.io/name={CLEANER}"))
        placed = [pod for pod in pods.items if not pod["metadata"].get("deletionTimestamp")]
        return {pod["spec"].get("nodeName") or f"? ({pod['metadata']['name']})": pod for pod in placed}

    async def _set(self, name: str) -> Document | None:
        try:
            return await self.api.get(DAEMON_SETS, name, self.namespace)
        except NotFound:
            return None


def _why(pod: Document, silent: Mapping[str, str], timeout_s: float) -> str:
    node = pod["spec"].get("nodeName", "")
    return silent.get(node) or waiting.trouble(pod) or f"not within {timeout_s:g} s"
