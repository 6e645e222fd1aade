"""A mesh in a Kubernetes cluster, asked through port-forwarding: loopback ports are reached in no other way."""

import asyncio
import http
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cli.cluster import FIELD_MANAGER, told
from cli.reach.base import CONTROLLER, Unreachable
from mesh.kube.api import Api, Selection
from mesh.kube.documents import labels_of
from mesh.kube.errors import ApiFault, Misconfigured, NotFound
from mesh.kube.forward import Forwarder
from mesh.kube.kubeconfig import Kubeconfig, configuration
from mesh.kube.resources import PODS
from mesh.kube.transport import Call, over

T = TypeVar("T")
Document = dict[str, Any]

LOG_TIMEOUT_S = 30.0
MAX_LOG_BYTES = 64 << 20


class ClusterReach:
    """One installation."""

    controllers_may_be_elsewhere = False

    def __init__(self, kubeconfig: Kubeconfig | None, namespace: str) -> None:
        """Raises Unreachable. Credentials are asked for once: a plug-in may take its time, or ask a person."""
        try:
            found = configuration(kubeconfig)
        except Misconfigured as error:
            raise Unreachable(str(error)) from error
        self._forwarder = Forwarder(found)
        self._transport = over(found)
        self._kubeconfig = kubeconfig
        self.namespace = namespace
        self._by_node: dict[str, str] | None = None
        self._lock = threading.Lock()

    def emptiness(self) -> str:
        """Nobody has installed anything, or it does not run."""
        return (
            f"namespace {self.namespace} has no running pod of culvert-node: `culvert check` says why, "
            "`culvert install` makes an installation, -n names another namespace"
        )

    def nodes(self) -> list[str]:
        """Nodes on which our pod runs."""
        return sorted(self._pods())

    def get(self, node: str, port: int, path: str) -> bytes:
        """Ask through the node's pod: it is on the node's network, so its loopback is the node's."""
        pods = self._pods()
        if node not in pods:
            raise Unreachable(f"node {node} has no running pod of culvert-node")
        return self._forwarded(pods[node], port, path)

    def controllers(self) -> list[str]:
        """Pods of the Deployment that run."""
        selection = Selection(PODS, self.namespace, label_selector="app.kubernetes.io/name=culvert-controller")
        found = [pod for pod in self.listed(selection) if pod.get("status", {}).get("phase") == "Running"]
        return sorted(pod["metadata"]["name"] for pod in found if not pod["metadata"].get("deletionTimestamp"))

    def get_controller(self, name: str, path: str) -> bytes:
        """Ask one pod of the Deployment."""
        return self._forwarded(name, CONTROLLER, path)

    def place_of(self, source: str) -> tuple[str, str]:
        """By the API server."""
        namespace, slash, name = source.rpartition("/")
        namespace = namespace if slash else "default"
        try:
            pod = self.ask(lambda api: api.get(PODS, name, namespace))
        except NotFound as error:
            raise Unreachable(f"there is no pod {namespace}/{name}") from error
        node = pod["spec"].get("nodeName")
        if not node:
            raise Unreachable(f"pod {namespace}/{name} is on no node yet")
        return node, f"{namespace}/{name}"

    def pod_labels(self) -> dict[str, dict[str, str]]:
        """By the API server."""
        pods = self.listed(Selection(PODS, metadata_only=True))
        return {f"{one['metadata']['namespace']}/{one['metadata']['name']}": labels_of(one) for one in pods}

    def listed(self, selection: Selection) -> list[Document]:
        """Objects of the API server; raises Unreachable."""

        async def all_pages(api: Api) -> list[Document]:
            return [item async for page in api.pages(selection) for item in page]

        try:
            return self.ask(all_pages)
        except NotFound as fault:
            raise Unreachable(told(fault, self._kubeconfig)) from fault

    def log(self, namespace: str, pod: str, container: str, *, previous: bool = False, lines: int = 20_000) -> bytes:
        """What a container wrote; raises Unreachable."""
        query: dict[str, str | int] = {"container": container, "tailLines": lines, "timestamps": "true"}
        if previous:
            query["previous"] = "true"
        call = Call("GET", PODS.path(namespace, pod, "log"), query, accept="*/*", timeout_s=LOG_TIMEOUT_S)
        try:
            with self._transport.stream(call, LOG_TIMEOUT_S) as answer:
                return answer.read(MAX_LOG_BYTES)
        except ApiFault as fault:
            raise Unreachable(f"the API server: {fault}") from fault

    def ask(self, work: Callable[[Api], Coroutine[Any, Any, T]]) -> T:
        """Something of the API server; raises NotFound, and Unreachable for every other fault."""

        async def connected() -> T:
            return await work(Api(self._transport, FIELD_MANAGER))

        try:
            return asyncio.run(connected())
        except NotFound:
            raise
        except ApiFault as fault:
            raise Unreachable(told(fault, self._kubeconfig)) from fault

    def _pods(self) -> dict[str, str]:
        """Our running pods, by node; of two on one node (an upgrade) the older one, which has the node's ports."""
        with self._lock:
            if self._by_node is None:
                selection = Selection(PODS, self.namespace, label_selector="app.kubernetes.io/name=culvert-node")
                running = [pod for pod in self.listed(selection) if pod.get("status", {}).get("phase") == "Running"]
                running.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)
                self._by_node = {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in running}
            return self._by_node

    def _forwarded(self, pod: str, port: int, path: str) -> bytes:
        try:
            return self._forwarder.get(self.namespace, pod, port, path)
        except ApiFault as fault:
            if fault.status == http.HTTPStatus.BAD_REQUEST:  # what was asked, as our own processes say it
                raise Unreachable(fault.sentence) from fault
            raise Unreachable(told(fault, self._kubeconfig, f"{self.namespace}/{pod}")) from fault
