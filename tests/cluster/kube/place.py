"""Names and paths of one cluster; nothing here touches the machine."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

STATE_ROOT = Path("/var/tmp/culvert-kube")
NETNS_ROOT = Path("/run/netns")

CONTROL_PLANE4 = IPv4Address("192.168.78.1")
CONTROL_PLANE6 = IPv6Address("fd78::1")
NODES4 = IPv4Network("192.168.78.0/24")
NODES6 = IPv6Network("fd78::/64")
PODS4 = IPv4Network("10.244.0.0/16")
PODS6 = IPv6Network("fd44::/48")
SERVICES4 = IPv4Network("10.97.0.0/16")
SERVICES6 = IPv6Network("fd97::/112")
API_SERVICE = IPv4Address("10.97.0.1")
DNS_SERVICE = IPv4Address("10.97.0.10")
API_PORT = 6443


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node. Its name has a dot, as those of clouds do."""

    cluster: str
    number: int  # from 1
    state: Path

    @property
    def name(self) -> str:
        """As Kubernetes knows it."""
        return f"n{self.number}.{self.cluster}"

    @property
    def netns(self) -> Path:
        """Its network namespace."""
        return NETNS_ROOT / f"{self.cluster}-n{self.number}"

    @property
    def cgroup(self) -> str:
        """Root of its kubelet's cgroups: two kubelets under one root would end each other's pods."""
        return f"{self.cluster}/n{self.number}"

    @property
    def address4(self) -> IPv4Address:
        """Its address on the nodes' network."""
        return NODES4[10 + self.number]

    @property
    def address6(self) -> IPv6Address:
        """The same in IPv6."""
        return NODES6[0x10 + self.number]

    @property
    def pods4(self) -> IPv4Network:
        """Addresses of its pods."""
        return list(PODS4.subnets(new_prefix=24))[self.number]

    @property
    def pods6(self) -> IPv6Network:
        """The same in IPv6."""
        return IPv6Network(f"fd44:0:0:{self.number:x}::/64")

    @property
    def containerd_socket(self) -> Path:
        """Where its containerd listens."""
        return self.state / "containerd.sock"

    @property
    def cni_config(self) -> Path:
        """Directory of its CNI configuration."""
        return self.state / "cni" / "net.d"

    @property
    def cni_plugins(self) -> Path:
        """Directory of its CNI plugins: its own, so that what one node installs the other does not have."""
        return self.state / "cni" / "bin"


@dataclass(frozen=True, slots=True)
class Place:
    """One cluster."""

    name: str = "kube"
    node_count: int = 2

    @property
    def state(self) -> Path:
        """Everything that it keeps on disk."""
        return STATE_ROOT / self.name

    @property
    def logs(self) -> Path:
        """What its processes print."""
        return self.state / "logs"

    @property
    def netns(self) -> Path:
        """Namespace of the control plane, which is also the bridge between the nodes."""
        return NETNS_ROOT / f"{self.name}-control"

    @property
    def kubeconfig(self) -> Path:
        """For cluster administrators."""
        return self.state / "admin.kubeconfig"

    @property
    def nodes(self) -> list[NodePlace]:
        """All of its nodes."""
        # A node's directory has the node's name: a DaemonSet's mounts know nothing else of where they are.
        numbers = range(1, self.node_count + 1)
        return [NodePlace(self.name, number, self.state / f"n{number}.{self.name}") for number in numbers]
