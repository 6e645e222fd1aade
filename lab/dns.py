"""The name server of one node: dnsmasq's command line and the names it answers, as text."""

from collections.abc import Iterable
from pathlib import Path

from lab.endpoints import ServiceName
from lab.plan import DNS4

CLUSTER_DOMAIN = "cluster.local"
# A SIGHUP that finds dnsmasq still starting would end it.
SETTLE_S = 0.5
# What the marker of a generation of names resolves to; nobody connects there (RFC 5737).
MARKER_IP = "192.0.2.1"


def command(hosts: Path) -> list[str]:
    """Dnsmasq in the foreground; it knows only `hosts` and reads that again on SIGHUP."""
    return [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        # As root: a change of user would clear the death signal that ties it to the supervisor.
        "--user=root",
        "--group=root",
        "--pid-file",
        "--log-facility=-",
        "--bind-interfaces",
        f"--listen-address={DNS4}",
        "--no-resolv",
        "--no-hosts",
        "--no-poll",
        "--cache-size=0",
        # There is nobody else to ask: an unknown name does not exist, rather than cannot be answered.
        "--local=/#/",
        f"--addn-hosts={hosts}",
    ]


def hosts(names: Iterable[ServiceName]) -> str:
    """The names in the form of /etc/hosts, without the marker of a generation (lab.resolving)."""
    return "".join(f"{ip} {name.name}\n" for name in names for ip in name.ips)


def resolv_conf(namespace: str, domain: str = CLUSTER_DOMAIN) -> str:
    """What kubelet writes into a pod of this namespace."""
    return f"search {namespace}.svc.{domain} svc.{domain} {domain}\nnameserver {DNS4}\noptions ndots:5\n"


def pod_hosts(hostname: str, ips: Iterable[str]) -> str:
    """/etc/hosts of a pod: itself, nothing of the machine."""
    own = "".join(f"{ip}\t{hostname}\n" for ip in ips)
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}"
