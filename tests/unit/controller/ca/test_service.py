"""Certificates over real gRPC: for the pods of the node that asks, and for nobody else."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from controller.app import Controller
from mesh.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from tests.support.pki import csr, p256
from tests.unit.controller.nodes import FakeNode, Manifests, config, node, pod, running

pytestmark = pytest.mark.slow

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
WEB = "spiffe://cluster.local/ns/shop/sa/web"


async def ask(one: FakeNode, identity: str, request: str | None = None) -> IstioCertificateResponse:
    method: Any = one.channel.unary_unary(
        METHOD,
        request_serializer=IstioCertificateRequest.SerializeToString,
        response_deserializer=IstioCertificateResponse.FromString,
    )
    message = IstioCertificateRequest(csr=csr(p256()) if request is None else request, validity_duration=3600)
    if identity:
        message.metadata["ImpersonatedIdentity"] = identity
    answer: IstioCertificateResponse = await method(message)
    return answer


async def refused(one: FakeNode, identity: str, request: str | None = None) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(one, identity, request)
    code: grpc.StatusCode = caught.value.code()
    return code


def count(controller: Controller, line: str) -> bool:
    return f"culvert_controller_{line}".encode() in controller.metrics.render()


def test_a_node_gets_certificates_of_its_own_pods_only(tmp_path: Path) -> None:
    async def test() -> None:
        settings = config(tmp_path)
        manifests = Manifests(tmp_path / "manifests")
        manifests.write("pods", pod("web", "10.0.0.1", "node-a"), pod("far", "10.0.0.2", "node-b"))
        denied, invalid = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
        async with running(settings) as controller, node(controller, tmp_path, "node-a") as one:
            answer = await ask(one, WEB)
            leaf = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
            assert answer.cert_chain[-1].encode() == controller.authority.issuer.roots_pem
            assert await refused(one, "spiffe://cluster.local/ns/shop/sa/far") == denied
            assert await refused(one, "spiffe://cluster.local/ns/culvert-system/sa/culvert-node") == denied
            assert await refused(one, "spiffe://elsewhere/ns/shop/sa/web") == denied
            assert await refused(one, "") == invalid
            assert await refused(one, "spiffe://cluster.local/ns/shop/sa/web/x") == invalid
            assert await refused(one, WEB, "nonsense") == invalid
            assert count(controller, "certificates_issued_total 1.0")
            assert count(controller, 'certificates_refused_total{reason="not_on_node"} 2.0')
            assert count(controller, 'certificates_refused_total{reason="csr"} 1.0')

    asyncio.run(test())


def test_an_identity_goes_with_its_last_pod(tmp_path: Path) -> None:
    async def test() -> None:
        settings = config(tmp_path)
        manifests = Manifests(tmp_path / "manifests")
        manifests.write("web", pod("web", "10.0.0.1", "node-a"))
        async with running(settings) as controller, node(controller, tmp_path, "node-a") as one, one.streaming():
            await one.until(lambda: len(one.held) == 1)
            await ask(one, WEB)
            manifests.remove("web")
            await one.until(lambda: not one.held)
            assert await refused(one, WEB) == grpc.StatusCode.PERMISSION_DENIED

    asyncio.run(test())


def test_before_pods_are_known_nobody_is_refused_as_one_who_asks_for_too_much(tmp_path: Path) -> None:
    async def test() -> None:
        settings = config(tmp_path)
        Manifests(tmp_path / "manifests").write("web", pod("web", "10.0.0.1", "node-a"))
        async with running(settings) as controller, node(controller, tmp_path, "node-a") as one:
            controller.certificates._knows_pods = False
            assert await refused(one, WEB) == grpc.StatusCode.UNAVAILABLE
            assert count(controller, 'certificates_refused_total{reason="not_ready"} 1.0')
            controller.certificates.open_for_nodes()
            await ask(one, WEB)

    asyncio.run(test())
