"""Istio's ztunnel driven by our controller: what the real binary was seen to send, tokens of a real API server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from google.protobuf.struct_pb2 import Struct

from controller.ca.distribution import pem
from mesh.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, DELTA_METHOD
from tests.cluster.alone import ApiAlone
from tests.cluster.callers import CREATE, config
from tests.cluster.mesh_objects import Objects
from tests.support.pki import csr, p256
from tests.unit.controller.nodes import Manifests, pod, policy, running

pytestmark = pytest.mark.slow

DENY = {"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["evil"]}}]}]}


class IstioZtunnel:
    """One process of Istio's: what it sends, in the order in which it sends it."""

    def __init__(self, channel: Any, token: str, namespace: str, account: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))
        self.node = Node(id=f"ztunnel~10.0.0.9~{account}-x.{namespace}~{namespace}.svc.cluster.local")
        facts = {"NAME": f"{account}-x", "NAMESPACE": namespace, "NODE_NAME": "n", "INSTANCE_IPS": "10.0.0.9"}
        self.node.metadata.update({**facts, "CLUSTER_ID": "Kubernetes", "DNS_CAPTURE": "true"})

    async def sync(self) -> dict[str, set[str]]:
        """Subscribe to both types, answer as it does, and say which names came."""
        method: Any = self._channel.stream_stream(
            DELTA_METHOD,
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call = method(metadata=self._metadata)
        for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
            await call.write(DeltaDiscoveryRequest(type_url=type_url, node=self.node))
        found: dict[str, set[str]] = {}
        while len(found) < 2:
            response = await asyncio.wait_for(call.read(), 10)
            found[response.type_url] = {resource.name for resource in response.resources}
            await call.write(DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce))
        call.cancel()
        return found

    async def certificate(self, identity: str, *, impersonated: bool) -> tuple[x509.Certificate, list[str]]:
        """Ask as shared mode does (`ImpersonatedIdentity`) or as dedicated mode does (empty metadata)."""
        name = x509.UniformResourceIdentifier(identity)
        request = IstioCertificateRequest(csr=csr(p256(), name), validity_duration=86_400, metadata=Struct())
        if impersonated:
            request.metadata["ImpersonatedIdentity"] = identity
        method: Any = self._channel.unary_unary(
            CREATE,
            request_serializer=IstioCertificateRequest.SerializeToString,
            response_deserializer=IstioCertificateResponse.FromString,
        )
        answer = await method(request, metadata=self._metadata, timeout=10)
        return x509.load_pem_x509_certificate(answer.cert_chain[0].encode()), list(answer.cert_chain)


@contextlib.asynccontextmanager
async def driven(
    server: ApiAlone, tmp_path: Path, account: str, **accounts: str
) -> AsyncIterator[tuple[Any, str, str]]:
    """A controller with Istio's audience, and a token of an account, bound to a pod: channel, token, namespace."""
    objects = await Objects.make(server.api(), "istio-system")
    node = await objects.node()
    await objects.account(account)
    uid = await objects.pod(f"{account}-x", account, node)
    token = await objects.token(account, "istio-ca", (f"{account}-x", uid))
    settings = config(tmp_path, server, objects.namespace)
    named = {setting: (f"{objects.namespace}/{name}",) for setting, name in accounts.items()}
    callers = replace(
        settings.callers, token_audiences=("culvert-ca", "istio-ca"), **{"node_accounts": ("x/y",), **named}
    )
    Manifests(tmp_path / "manifests").write("mesh", pod("web", "10.0.0.1", node), policy("deny", DENY))
    async with running(replace(settings, callers=callers)) as controller:
        roots = pem(controller.authority.roots).encode()
        proof = grpc.ssl_channel_credentials(roots)
        async with grpc.aio.secure_channel(f"127.0.0.1:{controller.port}", proof) as channel:
            yield channel, token, objects.namespace


def test_shared_mode(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with driven(api_server, tmp_path, "ztunnel", node_accounts="ztunnel") as (channel, token, namespace):
            one = IstioZtunnel(channel, token, namespace, "ztunnel")
            found = await one.sync()
            assert "Kubernetes//Pod/shop/web" in found[ADDRESS_TYPE]
            assert "shop/deny" in found[AUTHORIZATION_TYPE]
            identity = "spiffe://cluster.local/ns/shop/sa/web"
            leaf, chain = await one.certificate(identity, impersonated=True)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity]
            assert len(chain) == 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await one.certificate("spiffe://cluster.local/ns/shop/sa/other", impersonated=True)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(test())


def test_dedicated_mode(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with driven(api_server, tmp_path, "client", reader_accounts="client") as (channel, token, namespace):
            one = IstioZtunnel(channel, token, namespace, "client")
            assert "Kubernetes//Pod/shop/web" in (await one.sync())[ADDRESS_TYPE]
            own = f"spiffe://cluster.local/ns/{namespace}/sa/client"
            leaf, _ = await one.certificate(own, impersonated=False)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.UniformResourceIdentifier) == [own]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await one.certificate("spiffe://cluster.local/ns/shop/sa/web", impersonated=True)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(test())
