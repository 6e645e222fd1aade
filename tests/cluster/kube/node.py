"""One node: containerd, kubelet and kube-proxy in a namespace, with directories of their own."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab import namespaces
from tests.cluster.kube import binaries, cgroups, place, remains
from tests.cluster.kube.place import NodePlace
from tests.cluster.kube.processes import Daemons, wait_until

PAUSE = "culvert.test/pause:1"
PLUGINS = ("ptp", "host-local", "loopback", "bridge", "portmap")


class Node:
    """Starts and stops what makes a namespace a node."""

    def __init__(self, daemons: Daemons, node: NodePlace) -> None:
        self._daemons = daemons
        self.place = node

    def start(self, images: Sequence[Path]) -> None:
        """Start everything, with images from files; returns when these are there."""
        self.prepare()
        self.start_containerd(images)
        self.start_kubelet()
        self.start_proxy()

    def prepare(self) -> None:
        """Write everything that its daemons read; the network configuration stays as others have changed it."""
        node = self.place
        for folder in (node.state, node.cni_config, node.cni_plugins):
            folder.mkdir(parents=True, exist_ok=True)
        for plugin in PLUGINS:
            shutil.copy(binaries.CNI_PLUGINS / plugin, node.cni_plugins / plugin)
        (node.state / "containerd.toml").write_text(_containerd_config(node))
        network = node.cni_config / "10-pods.conflist"
        if not network.exists():
            network.write_text(json.dumps(_cni_config(node), indent=1))
        (node.state / "kubelet.json").write_text(json.dumps(_kubelet_config(node), indent=1))
        cgroups.make(node.cgroup)

    def start_containerd(self, images: Sequence[Path]) -> None:
        """Start containerd and give it images from files."""
        node = self.place
        self._daemons.start(
            f"containerd{node.number}", node.netns, ["containerd", "-c", str(node.state / "containerd.toml")]
        )
        wait_until(f"containerd of {node.name}", lambda: self.ctr("version").returncode == 0, 30, self._daemons)
        for image in images:
            self.load(image)

    def load(self, image: Path) -> None:
        """Import an image; raises CalledProcessError."""
        self.ctr("-n", "k8s.io", "images", "import", str(image)).check_returncode()

    def ctr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """containerd's own command line."""
        command = ["ctr", "-a", str(self.place.containerd_socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def start_kubelet(self) -> None:
        """Start the kubelet; the node registers itself."""
        node = self.place
        argv = [str(binaries.find("kubernetes", "kubelet")), "--kubeconfig", _kubeconfig(node, node.name)]
        argv += ["--config", str(node.state / "kubelet.json"), "--root-dir", str(node.state / "kubelet")]
        argv += ["--cert-dir", str(node.state / "pki"), "--hostname-override", node.name]
        argv += ["--node-ip", f"{node.address4},{node.address6}"]
        self._daemons.start(f"kubelet{node.number}", node.netns, argv)

    def stop_kubelet(self) -> None:
        """The kubelet ends and what it started runs on: the node does not answer any more."""
        self._daemons.stop(f"kubelet{self.place.number}")

    def power_off(self) -> None:
        """End everything on the node but its own namespace: what is in memory goes, what is on disk stays."""
        node = self.place
        groups = (f"{node.cluster}/{cgroups.DAEMONS}/containerd{node.number}", node.cgroup)
        own = remains.namespaces_of(pid for group in groups for pid in cgroups.processes(group))
        self._daemons.cut(*(f"{name}{node.number}" for name in ("kubelet", "proxy", "containerd")))
        left = cgroups.kill(node.cgroup)
        assert not left, f"processes of {node.name} do not end: {left}"
        remains.unmount(node.state)
        for name in {*own} - {node.netns.name}:
            namespaces.remove(name)
        shutil.rmtree(node.state / "containerd-state")

    def start_proxy(self) -> None:
        """Start kube-proxy, with nftables."""
        node = self.place
        argv = [str(binaries.find("kubernetes", "kube-proxy")), "--kubeconfig", _kubeconfig(node, "admin")]
        argv += ["--proxy-mode", "nftables", "--hostname-override", node.name, "--conntrack-max-per-core", "0"]
        argv += ["--cluster-cidr", f"{place.PODS4},{place.PODS6}", "--bind-address", str(node.address4)]
        self._daemons.start(f"proxy{node.number}", node.netns, argv)


def _kubeconfig(node: NodePlace, user: str) -> str:
    return str(node.state.parent / f"{user}.kubeconfig")


def _containerd_config(node: NodePlace) -> str:
    return f"""\
version = 2
root = "{node.state}/containerd"
state = "{node.state}/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{node.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Where CAP_SYS_RESOURCE is missing no process may lower its oom_score_adj, and no sandbox would start.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{node.cni_plugins}"
    conf_dir = "{node.cni_config}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{_snapshotter(node.state)}"
"""


def _snapshotter(folder: Path) -> str:
    """Containers share what they have of an image where the file system can do that; elsewhere each has a copy."""
    with tempfile.TemporaryDirectory(prefix=".overlay-", dir=folder) as name:
        lower, upper, work, merged = paths = [Path(name) / part for part in ("lower", "upper", "work", "merged")]
        for path in paths:
            path.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(merged)]
        mounted = subprocess.run(command, check=False, capture_output=True)
        if mounted.returncode:
            return "native"
        subprocess.run(["umount", str(merged)], check=True)
        return "overlayfs"


def _cni_config(node: NodePlace) -> dict[str, object]:
    ranges = [[{"subnet": str(node.pods4)}], [{"subnet": str(node.pods6)}]]
    ipam = {
        "type": "host-local",
        "dataDir": str(node.state / "ipam"),
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam}],
    }


def _kubelet_config(node: NodePlace) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        "clusterDNS": [str(place.DNS_SERVICE)],
        "clusterDomain": "cluster.local",
        "failSwapOn": False,
        # Under /var/log/pods each kubelet would clear away what it does not know: the logs of the other's pods.
        "podLogsDir": str(node.state / "pod-logs"),
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "100Mi"},
        "syncFrequency": "10s",
        "fileCheckFrequency": "5s",
        "nodeStatusUpdateFrequency": "5s",
    }
