"""A whole cluster: brought up in order, asked through kubectl, taken down without a trace."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab import namespaces
from tests.cluster.kube import binaries, cgroups, dns, images, network, place, remains
from tests.cluster.kube.api_server import ApiServer, Ports
from tests.cluster.kube.credentials import Credentials
from tests.cluster.kube.node import PAUSE, Node
from tests.cluster.kube.place import Place
from tests.cluster.kube.processes import Daemons, in_namespace, wait_until

ETCD_PORTS = (2379, 2380)


class Cluster:
    """Control plane and nodes of one place. `up` in one process and `down` in another is what the command line does."""

    def __init__(self, where: Place, say: Callable[[str], None] = lambda text: None) -> None:
        self.place = where
        self._say = say
        self.nodes: list[Node] = []
        self._daemons: Daemons | None = None  # those of this process

    @property
    def is_up(self) -> bool:
        """Something of it is there."""
        return self.place.state.exists() or any(name.startswith(f"{self.place.name}-") for name in namespaces.names())

    def up(self, image_files: Sequence[Path] = ()) -> None:
        """Start everything; returns when both nodes are ready and DNS answers. Takes everything back on a fault."""
        binaries.check_system()
        binaries.check_built("kubernetes", "coredns")
        if self.is_up:
            raise FileExistsError(f"cluster {self.place.name} is up already, or left something: `down` first")
        try:
            self._up(image_files)
        except BaseException:
            self.down()
            raise

    def _up(self, image_files: Sequence[Path]) -> None:
        self.place.state.mkdir(parents=True)
        cgroups.make(f"{self.place.name}/{cgroups.DAEMONS}")
        network.make(self.place)
        own_images = self._make_images()
        server = f"https://{place.CONTROL_PLANE4}:{place.API_PORT}"
        credentials = Credentials(self.place.state, server, [node.name for node in self.place.nodes])
        credentials.make()
        daemons = self._daemons = Daemons(self.place)
        self._say("control plane")
        api = ApiServer(daemons, self.place.state, credentials, self.place.netns, Ports(place.API_PORT, *ETCD_PORTS))
        api.start(str(place.CONTROL_PLANE4), dual_stack=True)
        self._announce_api()
        self._start_managers(daemons, credentials)
        self._say("nodes, and their images")
        self.nodes = [Node(daemons, node_place) for node_place in self.place.nodes]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.start([*own_images, *image_files]), self.nodes))
        self.apply(dns.manifests())
        wait_until("the nodes' readiness", self.nodes_are_ready, 90, daemons)
        self._say("cluster DNS")
        self.kubectl("rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=90s")

    def down(self) -> None:
        """End everything and remove it; what is not there is no fault."""
        own = remains.namespaces_of(cgroups.processes(self.place.name))
        left = cgroups.kill(self.place.name)
        if left:
            raise TimeoutError(f"processes of {self.place.name} do not end: {left}")
        if self._daemons is not None:
            self._daemons.reap()
        remains.unmount(self.place.state)
        network.remove(self.place)
        for name in own:
            namespaces.remove(name)
        cgroups.remove(self.place.name)
        shutil.rmtree(self.place.state, ignore_errors=True)
        with suppress(OSError):
            place.STATE_ROOT.rmdir()

    def power_off(self, number: int) -> None:
        """A node (from 0) loses its power: no process of it runs on, and no namespace or mount is left."""
        node = self.nodes[number]
        node.power_off()
        network.leave(self.place, node.place)

    def power_on(self, number: int) -> None:
        """The same node starts again, with what it has on disk."""
        node = self.nodes[number]
        network.join(self.place, node.place)
        node.start(())

    # --- asking

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints; raises CalledProcessError, with what it complained about as a note."""
        done = self.run_kubectl(arguments, input=stdin, capture_output=True)
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, ["kubectl", *arguments], done.stdout, done.stderr)
            error.add_note(done.stderr.strip())
            raise error
        return done.stdout

    def run_kubectl(self, arguments: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        """kubectl where it reaches the API server."""
        kubectl = str(binaries.find("kubernetes", "kubectl"))
        argv = [kubectl, "--kubeconfig", str(self.place.kubeconfig), *arguments]
        return in_namespace(self.place.netns, argv, **options)

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, objects: Sequence[dict[str, Any]]) -> None:
        """Create or change objects."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def nodes_are_ready(self) -> bool:
        """Every node is there and Ready."""
        found = self.get("nodes")["items"]
        conditions = [
            item for node in found for item in node["status"].get("conditions", ()) if item["type"] == "Ready"
        ]
        return len(found) == self.place.node_count and all(item["status"] == "True" for item in conditions)

    # --- steps

    def _make_images(self) -> list[Path]:
        found = []
        with tempfile.TemporaryDirectory(dir=self.place.state) as folder:
            root = Path(folder) / "pause"
            root.mkdir()
            source = Path(__file__).parent / "pause.c"
            subprocess.run(["gcc", "-static", "-O2", "-o", str(root / "pause"), str(source)], check=True)
            found.append(self._image("pause", PAUSE, root))
            root = Path(folder) / "coredns"
            root.mkdir()
            shutil.copy(binaries.find("coredns", "coredns"), root / "coredns")
            found.append(self._image("coredns", dns.IMAGE, root))
        return found

    def _image(self, name: str, tag: str, root: Path) -> Path:
        target = self.place.state / f"{name}.tar"
        images.write(target, tag, root, [f"/{name}"])
        return target

    def _announce_api(self) -> None:
        """The endpoints of the service `kubernetes`: written here, because a lone server's reconciler needs a lease."""
        meta = {"name": "kubernetes", "namespace": "default"}
        ports = [{"name": "https", "port": place.API_PORT, "protocol": "TCP"}]
        labels = {"kubernetes.io/service-name": "kubernetes"}
        self.apply(
            [
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {**meta, "labels": labels},
                    "addressType": "IPv4",
                    "ports": ports,
                    "endpoints": [{"addresses": [str(place.CONTROL_PLANE4)], "conditions": {"ready": True}}],
                }
            ]
        )

    def _start_managers(self, daemons: Daemons, credentials: Credentials) -> None:
        kubeconfig = str(self.place.kubeconfig)
        manager = [str(binaries.find("kubernetes", "kube-controller-manager")), "--kubeconfig", kubeconfig]
        manager += ["--service-account-private-key-file", str(credentials.folder / "sa.key")]
        manager += ["--root-ca-file", str(credentials.folder / "ca.crt"), "--leader-elect=false"]
        manager += ["--use-service-account-credentials", "--bind-address", "127.0.0.1"]
        daemons.start("controller-manager", self.place.netns, manager)
        scheduler = [str(binaries.find("kubernetes", "kube-scheduler")), "--kubeconfig", kubeconfig]
        daemons.start(
            "scheduler", self.place.netns, [*scheduler, "--leader-elect=false", "--bind-address", "127.0.0.1"]
        )
