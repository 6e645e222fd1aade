"""The machine that these tests talk in: a node's netns, two pods behind it, and an outside host.

    out 10.77.9.1 ----+
                      |  node (forwards; .254 and ::fe on each link)
pod a 10.77.1.1 ------+------ pod b 10.77.2.1
"""

import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import socket as Socket
from typing import TypeVar

from mesh import netns
from mesh.addresses import IPAddress

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """One namespace and its addresses."""

    name: str
    ip4: str = ""
    ip6: str = ""
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path("/run/netns") / self.name)

    def run(self, function: Callable[[], T]) -> T:
        return netns.inside(self.path, function)

    @property
    def cookie(self) -> int:
        return netns.cookie(self.path)

    @property
    def address4(self) -> IPAddress:
        return ip_address(self.ip4)

    @property
    def address6(self) -> IPAddress:
        return ip_address(self.ip6)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> Socket:
        sock = self.run(lambda: socket.socket(family, kind, protocol))
        sock.settimeout(5)
        return sock

    def listen(self, address: str, port: int, backlog: int = 1024, protocol: int = 0) -> Socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.socket(family, protocol=protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a program in the namespace, without the remount of /sys that `ip netns exec` does."""
        words = ("nsenter", f"--net={self.path}", *words)
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def sh(text: str) -> None:
    subprocess.run(["/bin/sh", "-ec", text], check=True, capture_output=True, text=True, timeout=60)


class Topology:
    """Builds the namespaces and removes them."""

    def __init__(self, prefix: str) -> None:
        self.node = Place(f"{prefix}-node", "10.77.1.254", "fd77:1::fe")
        self.a = Place(f"{prefix}-a", "10.77.1.1", "fd77:1::1")
        self.b = Place(f"{prefix}-b", "10.77.2.1", "fd77:2::1")
        self.out = Place(f"{prefix}-out", "10.77.9.1", "fd77:9::1")

    @property
    def places(self) -> tuple[Place, ...]:
        return (self.node, self.a, self.b, self.out)

    def build(self) -> None:
        node = self.node.name
        sh(f"ip netns add {node}; ip -n {node} link set lo up")
        sh(
            f"nsenter --net=/run/netns/{node} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 "
            "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
        )
        for place in (self.a, self.b, self.out):
            sh(f"ip netns add {place.name}; ip -n {place.name} link set lo up")
            self.link(place)

    def link(self, place: Place) -> None:
        """The link between a place and the node: v and the place's letter on the node, eth0 on the other end."""
        node, net4, net6 = self.node.name, place.ip4.rsplit(".", 1)[0], place.ip6.rsplit("::", 1)[0]
        link = f"v{place.name.rpartition('-')[2][0]}"
        sh(
            f"ip -n {node} link add {link} type veth peer name eth0 netns {place.name};"
            f"ip -n {node} addr add {net4}.254/24 dev {link};"
            f"ip -n {node} addr add {net6}::fe/64 dev {link} nodad; ip -n {node} link set {link} up"
        )
        self.address(place)

    def address(self, place: Place) -> None:
        """A place's own end: up, with its addresses and routes."""
        net4, net6 = place.ip4.rsplit(".", 1)[0], place.ip6.rsplit("::", 1)[0]
        sh(
            f"ip -n {place.name} addr add {place.ip4}/24 dev eth0;"
            f"ip -n {place.name} addr add {place.ip6}/64 dev eth0 nodad; ip -n {place.name} link set eth0 up;"
            f"ip -n {place.name} route add default via {net4}.254;"
            f"ip -n {place.name} -6 route add default via {net6}::fe"
        )

    def remove(self) -> None:
        for place in self.places:
            if place.path.exists():
                subprocess.run(["ip", "netns", "del", place.name], check=False, capture_output=True, timeout=60)


def prefix() -> str:
    return f"cvb-{os.getpid()}"
