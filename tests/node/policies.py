"""Policies for the topology of mesh_stage.py, and what becomes of a connection under them."""

from typing import Any

from tests.node.mesh_stage import Mesh

REFUSED = ("ConnectionResetError", "ConnectionRefusedError", "closed")


def policy(name: str, action: str = "ALLOW", **rule: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": action, "rules": [rule]},
    }


def from_account(account: str) -> list[dict[str, Any]]:
    return [{"source": {"principals": [f"cluster.local/ns/shop/sa/{account}"]}}]


def strict(mode: str = "STRICT") -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "shop"},
        "spec": {"mtls": {"mode": mode}},
    }


def outcome(mesh: Mesh, pod: str, port: int = 7001, host: str | None = None) -> str:
    found: str = mesh.client(pod, "try_connect", host or mesh.ips("shop/web")[0], port)["outcome"]
    return found
