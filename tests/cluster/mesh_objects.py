"""Objects of a mesh on a real API server: namespaces, nodes, accounts, pods, and the tokens of pods."""

import base64
import itertools
import json
import os
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from mesh.kube.api import Api
from mesh.kube.resources import NAMESPACES, NODES, PODS, SERVICE_ACCOUNTS, Resource
from mesh.kube.transport import Call
from tests.cluster.alone import ApiAlone

_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name that no other test of this session has."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


class Objects:
    """Makes objects in a namespace of its own."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    @classmethod
    async def make(cls, api: Api, prefix: str = "mesh") -> "Objects":
        """With its namespace."""
        namespace = fresh(prefix)
        await api.create(NAMESPACES, _document(NAMESPACES, "Namespace", namespace, ""))
        return cls(api, namespace)

    async def node(self) -> str:
        """A node; its name."""
        name = fresh("node")
        await self.api.create(NODES, _document(NODES, "Node", name, ""))
        return name

    async def account(self, name: str) -> None:
        """A service account."""
        await self.api.create(SERVICE_ACCOUNTS, self._document("ServiceAccount", name), self.namespace)

    async def pod(self, name: str, account: str, node: str) -> str:
        """A pod of an account on a node; its uid. Nothing runs."""
        spec = {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "containers": [{"name": "app", "image": "none"}],
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
        }
        made = await self.api.create(PODS, {**self._document("Pod", name), "spec": spec}, self.namespace)
        return str(made["metadata"]["uid"])

    async def token(self, account: str, audience: str = "culvert-ca", pod: tuple[str, str] | None = None) -> str:
        """A token of an account, bound to a pod (name, uid) if one is given."""
        spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 600}
        if pod is not None:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod[0], "uid": pod[1]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = SERVICE_ACCOUNTS.path(self.namespace, account, "token")
        return str(await self.api.request(Call("POST", path, body=body), lambda answer: answer["status"]["token"]))

    def _document(self, kind: str, name: str) -> dict[str, Any]:
        return _document(PODS, kind, name, self.namespace)


def _document(resource: Resource, kind: str, name: str, namespace: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"apiVersion": resource.api_version, "kind": kind, "metadata": metadata}


def with_times(server: ApiAlone, token: str, **times: int) -> str:
    """The same token with other times, signed by the server's own key."""
    header, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    signed = f"{header}.{_encode(json.dumps({**claims, **times}).encode())}"
    key = serialization.load_pem_private_key((server.place.state / "pki" / "sa.key").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return f"{signed}.{_encode(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
