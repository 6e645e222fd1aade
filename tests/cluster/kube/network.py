"""The machines of a cluster: namespaces on one bridge, with each node's pod range routed to it.

control --- br0 ---+--- n1 (eth0) --- pods 10.244.1.0/24, by the CNI plugin
(API server)       +--- n2 (eth0) --- pods 10.244.2.0/24
"""

from pathlib import Path

from pyroute2 import IPRoute

from lab import namespaces
from mesh.netns import inside
from tests.cluster.kube import place
from tests.cluster.kube.place import NodePlace, Place

BRIDGE = "br0"
LINK = "eth0"
NODAD = 0x02  # IFA_F_NODAD: addresses are usable at once


def make(cluster: Place) -> None:
    """Make and join all namespaces; raises FileExistsError when one of them exists."""
    namespaces.create(cluster.netns.name)
    inside(cluster.netns, _wire_control_plane)
    for node in cluster.nodes:
        join(cluster, node)


def join(cluster: Place, node: NodePlace) -> None:
    """Make one node's namespace and put it on the bridge; the others know already where its pods will be."""
    namespaces.create(node.netns.name)
    inside(cluster.netns, lambda: _plug_in(node))
    inside(node.netns, lambda: _wire_node(node, cluster.nodes))


def leave(cluster: Place, node: NodePlace) -> None:
    """Pull a node's cable and take its namespace away, which the kernel may keep for a moment longer."""
    inside(cluster.netns, lambda: _unplug(node))
    namespaces.remove(node.netns.name)


def remove(cluster: Place) -> None:
    """Take all namespaces away, those of pods included; what is not there is no fault."""
    for name in sorted(namespaces.names()):
        if name.startswith(f"{cluster.name}-"):
            namespaces.remove(name)


def _wire_control_plane() -> None:
    _forward()
    with IPRoute() as ip:
        ip.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
        _address(ip, BRIDGE, f"{place.CONTROL_PLANE4}/{place.NODES4.prefixlen}")
        _address(ip, BRIDGE, f"{place.CONTROL_PLANE6}/{place.NODES6.prefixlen}")
        _up(ip, "lo", BRIDGE)


def _port(node: NodePlace) -> str:
    return f"n{node.number}"


def _unplug(node: NodePlace) -> None:
    with IPRoute() as ip:
        ip.link("del", index=_index(ip, _port(node)))


def _plug_in(node: NodePlace) -> None:
    port = _port(node)
    with IPRoute() as ip:
        ip.link("add", ifname=port, kind="veth", peer={"ifname": LINK, "net_ns_fd": str(node.netns)})
        ip.link("set", index=_index(ip, port), master=_index(ip, BRIDGE))
        _up(ip, port)
        ip.route("replace", dst=str(node.pods4), gateway=str(node.address4))
        ip.route("replace", dst=str(node.pods6), gateway=str(node.address6))


def _wire_node(node: NodePlace, nodes: list[NodePlace]) -> None:
    _forward()
    with IPRoute() as ip:
        # A machine that is started again has the same: its neighbours need not find out.
        ip.link("set", index=_index(ip, LINK), address=f"02:00:00:00:78:{node.number:02x}")
        _address(ip, LINK, f"{node.address4}/{place.NODES4.prefixlen}")
        _address(ip, LINK, f"{node.address6}/{place.NODES6.prefixlen}")
        _up(ip, "lo", LINK)
        ip.route("add", dst="0.0.0.0/0", gateway=str(place.CONTROL_PLANE4))
        ip.route("add", dst="::/0", gateway=str(place.CONTROL_PLANE6))
        for other in nodes:
            if other != node:
                ip.route("add", dst=str(other.pods4), gateway=str(other.address4))
                ip.route("add", dst=str(other.pods6), gateway=str(other.address6))


def _forward() -> None:
    values = {
        "net/ipv4/ip_forward": 1,
        "net/ipv6/conf/all/disable_ipv6": 0,
        "net/ipv6/conf/default/disable_ipv6": 0,
        "net/ipv6/conf/default/accept_dad": 0,
        "net/ipv6/conf/all/forwarding": 1,
    }
    for name, value in values.items():
        Path("/proc/sys", name).write_text(str(value))


def _index(ip: IPRoute, name: str) -> int:
    (index,) = ip.link_lookup(ifname=name)
    return int(index)


def _address(ip: IPRoute, link: str, address: str) -> None:
    flags = {"flags": NODAD} if ":" in address else {}
    host, _, width = address.partition("/")
    ip.addr("add", index=_index(ip, link), address=host, prefixlen=int(width), **flags)


def _up(ip: IPRoute, *links: str) -> None:
    for link in links:
        ip.link("set", index=_index(ip, link), state="up")
