"""Wires namespaces into a routed network as a CNI plugin and a node's boot would: links, addresses, routes, sysctls.

Every function here works inside a namespace of the lab, on a thread of its own (`mesh.netns.inside`); only
`make_overlay` begins in the namespace of the machine. Functions block; the supervisor calls them from worker threads.
"""

import errno
import hashlib
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lab import plan
from lab.plan import NodePlan
from mesh import netns

T = TypeVar("T")

PERMANENT = 0x80  # NUD_PERMANENT: neighbours are known, so nothing is asked and nothing waits
NODAD = 0x02  # IFA_F_NODAD: the plan has no duplicates
SCOPE_LINK = 253

NODE_LINK = "eth0"
POD_LINK = "eth0"
BRIDGE = "br0"
OVERLAY = "vxlan0"
VXLAN_PORT = 4789
EVERYBODY = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class PodPlace:
    """What a pod's wiring needs to know."""

    link: str
    netns: Path
    ipv4: IPv4Address
    ipv6: IPv6Address
    mtu: int


def make_fabric(fabric: Path, mtu: int, has_controller: bool) -> None:
    """The bridge between the nodes; its own address is the controller's, where that runs here."""

    def wire() -> None:
        _sysctls({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
        with IPRoute() as ip:
            _up(ip, "lo")
            ip.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_mcast_snooping=0, mtu=mtu)
            if has_controller:
                _address(ip, BRIDGE, plan.CONTROLLER4, plan.FABRIC4.prefixlen)
                _address(ip, BRIDGE, plan.CONTROLLER6, plan.FABRIC6.prefixlen)
            _up(ip, BRIDGE)

    _inside(fabric, wire)


def make_overlay(fabric: Path, network_id: int, own_address: str) -> None:
    """A port of the bridge that leads to other machines; its packets travel in the namespace of the caller."""
    local = {"vxlan_local6" if ":" in own_address else "vxlan_local": own_address}
    try:
        with IPRoute() as ip:
            ip.link("add", ifname=OVERLAY, kind="vxlan", vxlan_id=network_id, vxlan_port=VXLAN_PORT, mtu=plan.SPAN_MTU,
                    vxlan_learning=1, net_ns_fd=str(fabric), **local)  # fmt: skip
    except NetlinkError as error:
        raise OSError(error.code, f"a VXLAN port on {own_address}: {error}") from error

    def enslave() -> None:
        with IPRoute() as ip:
            ip.link("set", index=_index(ip, OVERLAY), master=_index(ip, BRIDGE))
            _up(ip, OVERLAY)

    _inside(fabric, enslave)


def flood(fabric: Path, added: Iterable[str], gone: Iterable[str]) -> None:
    """Send frames for everybody (and for whom nobody knows) to these machines too, and to those no more."""

    def wire() -> None:
        with IPRoute() as ip:
            index = _index(ip, OVERLAY)
            for address in gone:
                ip.fdb("del", ifindex=index, lladdr=EVERYBODY, dst=address)
            for address in added:
                ip.fdb("append", ifindex=index, lladdr=EVERYBODY, dst=address)

    _inside(fabric, wire)


def make_node(fabric: Path, node: Path, node_plan: NodePlan, mtu: int) -> None:
    """One node: its link to the fabric, forwarding, routes to nowhere else."""
    port = f"n{node_plan.index}"

    def join() -> None:
        with IPRoute() as ip:
            # The same on every machine and at every start: what others remember of a node stays true.
            peer = {"ifname": NODE_LINK, "net_ns_fd": str(node), "mtu": mtu, "address": _mac(port, "node")}
            ip.link("add", ifname=port, kind="veth", mtu=mtu, peer=peer)
            ip.link("set", index=_index(ip, port), master=_index(ip, BRIDGE))
            _up(ip, port)

    def boot() -> None:
        _sysctls(
            {
                "net/ipv4/ip_forward": 1,
                "net/ipv6/conf/all/forwarding": 1,
                "net/ipv4/conf/all/rp_filter": 0,
                "net/ipv4/conf/default/rp_filter": 0,
                "net/ipv4/conf/all/send_redirects": 0,
                "net/ipv4/conf/default/send_redirects": 0,
            }
        )
        with IPRoute() as ip:
            _up(ip, "lo")
            _address(ip, "lo", plan.DNS4, 32)
            _address(ip, NODE_LINK, node_plan.ipv4, plan.FABRIC4.prefixlen)
            _address(ip, NODE_LINK, node_plan.ipv6, plan.FABRIC6.prefixlen)
            _up(ip, NODE_LINK)
            _node_routes(ip, node_plan)

    _inside(node, lambda: _sysctls({}))
    _inside(fabric, join)
    _inside(node, boot)


def _node_routes(ip: IPRoute, node_plan: NodePlan) -> None:
    eth0 = _index(ip, NODE_LINK)
    # Never followed: what goes there is translated or refused, but it needs a route to get that far.
    ip.route("add", dst=str(plan.SERVICES4), oif=eth0, scope=SCOPE_LINK, prefsrc=str(node_plan.ipv4))
    ip.route("add", dst=str(plan.SERVICES6), oif=eth0, prefsrc=str(node_plan.ipv6))
    # A pod that is gone, and the world outside, are refused at once instead of timing out.
    for nowhere in (str(node_plan.pods4), str(node_plan.pods6), "0.0.0.0/0", "::/0"):
        ip.route("add", dst=nowhere, type="unreachable")


def route_to(node: Path, other: NodePlan) -> None:
    """Have a node (or the fabric) reach the pods of another node."""

    def wire() -> None:
        with IPRoute() as ip:
            ip.route("add", dst=str(other.pods4), gateway=str(other.ipv4))
            ip.route("add", dst=str(other.pods6), gateway=str(other.ipv6))

    _inside(node, wire)


def make_pod(node: Path, node_plan: NodePlan, pod: PodPlace) -> None:
    """One pod: a veth whose other end is in the node, a /32 and a /128, everything by way of the node."""
    node_mac, pod_mac = _mac(pod.link, "node"), _mac(pod.link, "pod")

    def join() -> None:
        with IPRoute() as ip:
            peer = {"ifname": POD_LINK, "net_ns_fd": str(pod.netns), "address": pod_mac, "mtu": pod.mtu}
            ip.link("add", ifname=pod.link, kind="veth", address=node_mac, mtu=pod.mtu, peer=peer)
            index = _index(ip, pod.link)
            _up(ip, pod.link)
            for address, own in ((pod.ipv4, node_plan.ipv4), (pod.ipv6, node_plan.ipv6)):
                ip.neigh("replace", dst=str(address), lladdr=pod_mac, ifindex=index, state=PERMANENT)
                scope = SCOPE_LINK if address.version == 4 else 0
                width = address.max_prefixlen
                ip.route("replace", dst=f"{address}/{width}", oif=index, scope=scope, prefsrc=str(own))

    def inner() -> None:
        with IPRoute() as ip:
            _up(ip, "lo")
            _address(ip, POD_LINK, pod.ipv4, 32)
            _address(ip, POD_LINK, pod.ipv6, 128)
            _up(ip, POD_LINK)
            index = _index(ip, POD_LINK)
            ip.route("add", dst=f"{plan.GATEWAY4}/32", oif=index, scope=SCOPE_LINK)
            for gateway in (plan.GATEWAY4, plan.GATEWAY6):
                ip.neigh("replace", dst=str(gateway), lladdr=node_mac, ifindex=index, state=PERMANENT)
            ip.route("add", dst="0.0.0.0/0", gateway=str(plan.GATEWAY4), oif=index)
            ip.route("add", dst="::/0", gateway=str(plan.GATEWAY6), oif=index)

    _inside(pod.netns, lambda: _sysctls({}))
    _inside(node, join)
    _inside(pod.netns, inner)


def remove_pod_link(node: Path, link: str) -> None:
    """Take a pod's link away; its routes and neighbours go with it."""

    def wire() -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=link):
                try:
                    ip.link("del", index=index)
                except NetlinkError as error:
                    if error.code != errno.ENODEV:
                        raise

    _inside(node, wire)


def load_rules(node: Path, text: str) -> None:
    """Replace a node's nftables rules; raises OSError with what nft says."""

    def load() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, check=False)

    done = _inside(node, load)
    if done.returncode:
        raise OSError(f"nft refused the rules of {node.name}: {done.stderr.strip()}")


def _inside(path: Path, function: Callable[[], T]) -> T:
    return netns.inside(path, function)


def _sysctls(values: dict[str, int]) -> None:
    quiet = {
        "net/ipv6/conf/all/disable_ipv6": 0,
        "net/ipv6/conf/default/disable_ipv6": 0,
        "net/ipv6/conf/default/accept_dad": 0,
        "net/ipv6/conf/default/accept_ra": 0,
    }
    for name, value in {**quiet, **values}.items():
        Path("/proc/sys", name).write_text(str(value))


def _index(ip: IPRoute, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise OSError(errno.ENODEV, f"no link {name} in this namespace")
    return int(found[0])


def _up(ip: IPRoute, name: str) -> None:
    ip.link("set", index=_index(ip, name), state="up")


def _address(ip: IPRoute, name: str, address: IPv4Address | IPv6Address, width: int) -> None:
    flags = {"flags": NODAD} if address.version == 6 else {}
    ip.addr("add", index=_index(ip, name), address=str(address), prefixlen=width, **flags)


def _mac(link: str, end: str) -> str:
    digest = hashlib.sha256(f"{link}/{end}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
