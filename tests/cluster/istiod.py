"""Istio's own control plane, the binary, beside a real API server; and the control side of our ztunnel under it."""

import asyncio
import contextlib
import os
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh import xds
from mesh.aio import Background
from mesh.channel import Credentials
from mesh.identity import Identity
from mesh.kube.api import Api
from mesh.kube.errors import NotFound
from mesh.kube.resources import CONFIG_MAPS
from tests.cluster.alone import ApiAlone
from tests.cluster.kube.api_server import free_ports
from tests.cluster.mesh_objects import Objects, fresh
from tests.cluster.objects import define, namespace, put, until
from ztunnel.change import Change
from ztunnel.compile import policy_check
from ztunnel.control.ads import AdsClient, NodeIdentity
from ztunnel.control.link import ControllerLink
from ztunnel.data_path import load_border
from ztunnel.endpoints import Here
from ztunnel.identity.ca import GrpcCa
from ztunnel.identity.manager import IdentityManager
from ztunnel.identity.roots import RootsUpdates
from ztunnel.identity.svid import now_utc
from ztunnel.state import Store

BINARY = os.environ.get("CULVERT_TEST_ISTIOD", "")
NAMESPACE = "istio-system"
NAME = f"istiod.{NAMESPACE}.svc"
ZTUNNEL = "ztunnel"  # the account that may speak for the pods of its node
NODES = {"node-a": "z1", "node-b": "z2"}  # and their zones
CAPTURED = {"ambient.istio.io/redirection": "enabled"}  # as Istio's CNI writes it

# What Istio's chart for ambient mode sets, without webhooks and controllers that no test here is about.
_SETTINGS = {
    "PILOT_ENABLE_AMBIENT": "true",
    "CA_TRUSTED_NODE_ACCOUNTS": f"{NAMESPACE}/{ZTUNNEL}",
    "POD_NAME": "istiod-1",
    "POD_NAMESPACE": NAMESPACE,
    "SERVICE_ACCOUNT": "istiod",
    "CLUSTER_ID": "Kubernetes",
    "REVISION": "default",
    "PILOT_CERT_PROVIDER": "istiod",
    "PILOT_ENABLE_ANALYSIS": "false",
    "PILOT_ENABLE_GATEWAY_API": "false",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
}


class Istiod:
    """The process. It may be ended and started again: the port stays."""

    def __init__(self, server: ApiAlone, folder: Path, host: str = "127.0.0.1") -> None:
        self._server = server
        self._folder = folder
        self._host = host
        self.port, self._http = free_ports(2)
        self.log = folder / "istiod.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it; returns when it says that it is ready."""
        self._launch()
        await until(lambda: asyncio.to_thread(self._is_ready), "istiod is ready", 60)

    def _launch(self) -> None:
        argv = [BINARY, "discovery", f"--kubeconfig={self._server.kubeconfig}", "--clusterID=Kubernetes"]
        argv += [f"--secureGRPCAddr={self._host}:{self.port}", f"--httpAddr=127.0.0.1:{self._http}"]
        argv += ["--grpcAddr=", "--httpsAddr=", "--monitoringAddr=", "--ctrlz_port=0", "--shutdownDuration=1s"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, cwd=self._folder, env={**_SETTINGS, "PATH": os.environ["PATH"]}, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """End it as a machine does whose power fails."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def said(self) -> str:
        """The last of its log."""
        return self.log.read_text(errors="replace")[-6000:]

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.said()
        url = f"http://127.0.0.1:{self._http}/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
        return False


async def roots(api: Api, namespace: str) -> str:
    """What istiod gives to the pods of a namespace to trust it by."""
    found: list[str] = []

    async def are_there() -> bool:
        with contextlib.suppress(NotFound):
            document = await api.get(CONFIG_MAPS, "istio-ca-root-cert", namespace)
            found.append(document["data"]["root-cert.pem"])
        return bool(found)

    await until(are_there, f"roots in {namespace}", 60)
    return found[0]


@dataclass(frozen=True, slots=True)
class Stage:
    """An API server with two nodes, istiod beside it, and where ztunnels find their credentials."""

    server: ApiAlone
    istiod: Istiod
    folder: Path

    async def start(self) -> None:
        """Make what istiod expects to be there, and start it."""
        api = self.server.api()
        await define(api)
        await namespace(api, NAMESPACE)
        for node, zone in NODES.items():
            labels = {"topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": zone}
            await put(api, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}})
        await Objects(api, NAMESPACE).account(ZTUNNEL)
        await self.istiod.start()

    async def credentials(self, node: str, audience: str = "istio-ca") -> Credentials:
        """Of a node's ztunnel: the token of its pod, and the roots that istiod gives out."""
        api = self.server.api()
        system, name = Objects(api, NAMESPACE), fresh(ZTUNNEL)
        uid = await system.pod(name, ZTUNNEL, node)
        folder = self.folder / name
        folder.mkdir()
        (folder / "token").write_text(await system.token(ZTUNNEL, audience, (name, uid)))
        (folder / "root-cert.pem").write_text(await roots(api, NAMESPACE))
        return Credentials(folder / "none", folder / "token", "Kubernetes", folder / "root-cert.pem")


class Held:
    """The certificates that the engine would have."""

    def __init__(self) -> None:
        self.by_identity: dict[str, tuple[str, str, str]] = {}  # chain, key, roots

    def put_identity(self, identity: str, chain_pem: str, key_pem: str, roots_pem: str) -> None:
        self.by_identity[identity] = chain_pem, key_pem, roots_pem

    def remove_identity(self, identity: str) -> None:
        del self.by_identity[identity]


class Ztunnel:
    """The control side of a ztunnel of ours on a node, as `ztunnel.app` puts it together, with a store behind it."""

    def __init__(self, port: int, node: str, credentials: Credentials, *, asks_for_roots: bool = False) -> None:
        self.store = Store(Here(node, "", "Kubernetes"), check=policy_check(load_border()))
        self.held = Held()
        self.messages: dict[str, bytes] = {}  # as they came, by type and name
        self.updates: list[xds.Update] = []
        self.on_change: Callable[[Change], None] = lambda _: None
        self._link = ControllerLink(f"127.0.0.1:{port}", NAME, credentials)
        self._name = NodeIdentity(node, f"{ZTUNNEL}-{node}", NAMESPACE, "127.0.0.1", "Kubernetes")
        self._asks_for_roots = asks_for_roots

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connected from here on, and again whenever the stream ends."""
        async with Background() as tasks:
            ca = GrpcCa(self._link.channel, self._link.metadata, 86_400)
            self.identities = IdentityManager(ca, self.held, tasks, now_utc)
            extra = {xds.ROOTS_TYPE: RootsUpdates(self.identities.trust).apply} if self._asks_for_roots else {}
            self.ads = AdsClient(self._name, self._link, self._apply, extra)
            tasks.start(self.ads.run(), "stream")
            yield
        await self._link.close()

    def _apply(self, update: xds.Update) -> Mapping[str, str]:
        self.updates.append(update)
        for name in update.removed:
            self.messages.pop(_key(update.type_url, name), None)
        for changed in update.changed:
            self.messages[_key(update.type_url, changed.name)] = changed.value
        change = self.store.apply(update)
        self.on_change(change)
        return change.refused

    def certificate(self, namespace: str, account: str) -> Identity:
        """Ask for a certificate from now on; its identity."""
        identity = Identity("cluster.local", namespace, account)
        self.identities.acquire(identity)
        return identity


def _key(type_url: str, name: str) -> str:
    return f"{type_url.rpartition('.')[2]} {name}"
