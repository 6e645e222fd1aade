"""Small meshes for tests: workloads and connections with everything filled in that a case does not care about."""

from ipaddress import ip_address
from typing import Any

from bpf.layout import Direction
from mesh.addresses import to_bytes16
from mesh.identity import Identity
from ztunnel.events import ConnectionEvent, EventKind, Path, SocketAddress
from ztunnel.model import Workload


def workload(name: str, namespace: str = "shop", ip: str = "10.1.1.1", **changes: Any) -> Workload:
    """A pod of its own service account, speaking HBONE."""
    account = changes.pop("service_account", name)
    facts: dict[str, Any] = {
        "uid": f"Kubernetes//Pod/{namespace}/{name}",
        "name": name,
        "namespace": namespace,
        "identity": Identity("cluster.local", namespace, account),
        "addresses": (to_bytes16(ip),),
        "hbone": True,
        "workload_name": name,
        "canonical_name": name,
        "canonical_revision": "v1",
    }
    return Workload(**{**facts, **changes})


def address(text: str, port: int) -> SocketAddress:
    return SocketAddress(ip_address(text), port)


def event(**changes: Any) -> ConnectionEvent:
    """An inbound connection that ended well: 5 bytes one way, 7 the other, 12 ms."""
    facts: dict[str, Any] = {
        "kind": EventKind.CLOSED,
        "direction": Direction.INBOUND,
        "path": Path.HBONE,
        "opened": True,
        "connection": 1,
        "time_us": 1_767_225_600_250_000,
        "duration_us": 12_300,
        "bytes_sent": 5,
        "bytes_received": 7,
        "downstream": address("10.1.1.2", 40000),
        "upstream": address("10.1.1.1", 8080),
        "hbone": address("10.1.1.2", 51000),
        "identity": "spiffe://cluster.local/ns/shop/sa/client",
    }
    return ConnectionEvent(**{**facts, **changes})
