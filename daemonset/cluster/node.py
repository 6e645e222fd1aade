"""The agent's parts that only a node of Kubernetes has, put together: source, CNI, annotations."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from daemonset.agent import Agent
from daemonset.cluster.annotations import Annotator
from daemonset.cluster.namespaces import Sandboxes
from daemonset.cluster.source import ClusterSource
from daemonset.cni.gate import Gate, Starting
from daemonset.cni.install import Installer, Places
from daemonset.cni.server import CniServer
from daemonset.config import Config
from daemonset.pods import SourceUnavailable
from mesh.aio import Background
from mesh.kube.api import Api
from mesh.kube.errors import Misconfigured
from mesh.kube.transport import connect, connect_by_account


class ClusterNode:
    """One node's; made by the agent that holds the node's lock."""

    def __init__(self, config: Config, starting: Starting) -> None:
        """Raises SourceUnavailable."""
        cluster = config.cluster
        try:
            transport = connect(cluster.kubeconfig) if cluster.kubeconfig else connect_by_account()
        except Misconfigured as fault:
            raise SourceUnavailable(f"the API server: {fault}") from fault
        self._api = Api(transport, "culvert-node")
        self._socket = config.cni_socket
        self._for_istio = config.control.control_plane == "istio"
        self.sandboxes = Sandboxes()
        self.source = ClusterSource(self._api, config.place.node, self.sandboxes)
        self._gate = Gate(self.source, self.sandboxes, starting, istio_labels=config.enrolment.istio_labels)
        self._installer = Installer(places_of(config)) if cluster.cni_conf_dir else None
        self._annotator: Annotator | None = None

    def problems(self) -> dict[str, str]:
        """What is not as it should be, by part."""
        return {
            "api_server": self.source.fault,
            "cni": self._installer.fault if self._installer else "",
            "annotations": self._annotator.fault if self._annotator else "",
        }

    @property
    def is_installed(self) -> bool:
        """Pods that start come by the gate, as far as that is asked for."""
        return self._installer is None or not self._installer.fault

    def changed(self) -> None:
        """A pod's state is another now."""
        self._gate.changed()
        if self._annotator is not None:
            self._annotator.changed()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["ClusterNode"]:
        """Hear the CNI plugin, and keep it installed."""
        async with Background() as background, CniServer(self._socket, self._gate.answer) as server:
            background.start(server.failed(), "cni server")
            if self._installer is not None:
                background.start(self._installer.run(), "cni installation")
            yield self
        self.sandboxes.close()

    async def written(self) -> None:
        """Returns once the pods carry what stands for them now."""
        assert self._annotator is not None, "reports begin when annotations do"
        await self._annotator.written()

    def annotate(self, agent: Agent, background: Background) -> None:
        """Begin to write on pods what became of them."""
        self._annotator = Annotator(self._api, self.source, agent, for_istio=self._for_istio)
        self.source.observers.append(self._annotator.changed)
        background.start(self._annotator.run(), "annotations")


def places_of(config: Config) -> Places:
    """Where the plugin goes."""
    cluster = config.cluster
    return Places(
        cluster.cni_plugin,
        cluster.cni_bin_dir or Path("/opt/cni/bin"),
        cluster.cni_conf_dir or Path("/etc/cni/net.d"),
        config.cni_socket,
        cluster.cni_exclude,
    )
