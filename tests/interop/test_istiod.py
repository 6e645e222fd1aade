"""Our ztunnel's control side under Istio's control plane, played as istiod does it: TLS, token headers, two types."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh import xds
from mesh.aio import Background
from mesh.channel import Credentials
from mesh.identity import Identity
from mesh.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest
from tests.support.mounted import mount
from tests.support.pki import Authority, pem, spiffe
from tests.support.waiting import until
from ztunnel.control.ads import AdsClient, NodeIdentity
from ztunnel.control.link import ControllerLink
from ztunnel.identity.ca import GrpcCa
from ztunnel.identity.manager import IdentityManager
from ztunnel.identity.roots import RootsUpdates

pytestmark = pytest.mark.slow

NAME = "istiod.istio-system.svc"
WEB = Identity.parse(spiffe("web"))
CREATE = ("istio.v1.auth.IstioCertificateService", "CreateCertificate")
OURS = NodeIdentity("node-a", "ztunnel-x", "istio-system", "10.0.0.9", "Kubernetes")


class Istiod:
    """Answers as Istio's does; a type that it does not know gets no answer, or an error that ends the stream."""

    def __init__(self, authority: Authority, *, ends_over_unknown: bool = False) -> None:
        self.authority = authority
        self.ends_over_unknown = ends_over_unknown
        self.requests: list[DeltaDiscoveryRequest] = []
        self.signed: list[IstioCertificateRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.held = asyncio.Event()

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        async for raw in requests:
            request = DeltaDiscoveryRequest.FromString(raw)
            self.requests.append(request)
            if request.response_nonce:
                continue
            if request.type_url in (xds.ADDRESS_TYPE, xds.AUTHORIZATION_TYPE):
                await context.write(xds.encode_response(request.type_url, f"n-{request.type_url}", [], []))
            elif self.ends_over_unknown:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unknown type {request.type_url}")
        self.held.set()

    async def create(self, raw: bytes, context: Any) -> bytes:
        self.metadata.append(dict(context.invocation_metadata()))
        request = IstioCertificateRequest.FromString(raw)
        self.signed.append(request)
        csr = x509.load_pem_x509_csr(request.csr.encode())
        leaf = self.authority.leaf(request.metadata["ImpersonatedIdentity"], key=csr.public_key())  # type: ignore[arg-type]
        return IstioCertificateResponse(cert_chain=[pem(leaf), self.authority.pem]).SerializeToString()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = grpc.aio.server()
        stream = grpc.stream_stream_rpc_method_handler(self.stream)
        unary = grpc.unary_unary_rpc_method_handler(self.create)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(xds.SERVICE, {xds.METHOD: stream}),
                grpc.method_handlers_generic_handler(CREATE[0], {CREATE[1]: unary}),
            )
        )
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([serving(self.authority)]))
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)


def serving(authority: Authority) -> tuple[bytes, bytes]:
    """A serving certificate with istiod's DNS name."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(authority.certificate.not_valid_before_utc)
        .not_valid_after(authority.certificate.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), pem(leaf).encode()


class Sink:
    def __init__(self) -> None:
        self.held: dict[str, tuple[str, str]] = {}

    def put_identity(self, identity: str, chain_pem: str, key_pem: str, roots_pem: str) -> None:
        self.held[identity] = chain_pem, roots_pem

    def remove_identity(self, identity: str) -> None:
        del self.held[identity]


class Ztunnel:
    """The control side of ours, as `ztunnel.app` puts it together."""

    def __init__(self, port: int, folder: Path, *, asks_for_roots: bool) -> None:
        self.sink = Sink()
        credentials = Credentials(folder, folder / "istio-token", "Kubernetes", folder / "istio" / "root-cert.pem")
        self.link = ControllerLink(f"127.0.0.1:{port}", NAME, credentials)
        self._ca = GrpcCa(self.link.channel, self.link.metadata, 86_400)
        self._asks_for_roots = asks_for_roots

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[AdsClient]:
        async with Background() as tasks:
            manager = IdentityManager(self._ca, self.sink, tasks, lambda: datetime.now(UTC))
            extra = {xds.ROOTS_TYPE: RootsUpdates(manager.trust).apply} if self._asks_for_roots else {}
            ads = AdsClient(OURS, self.link, lambda _: {}, extra)
            tasks.start(ads.run(), "stream")
            manager.acquire(WEB)
            yield ads
        await self.link.close()


def folder_with(tmp_path: Path, authority: Authority) -> Path:
    (tmp_path / "istio-token").write_text("a.b.c")
    mount(tmp_path / "istio", {"root-cert.pem": authority.pem})
    return tmp_path


def test_it_syncs_and_gets_a_certificate_with_token_and_cluster(tmp_path: Path) -> None:
    async def test() -> None:
        istiod = Istiod(Authority())
        async with istiod.listening() as port:
            ztunnel = Ztunnel(port, folder_with(tmp_path, istiod.authority), asks_for_roots=False)
            async with ztunnel.running() as ads:
                await until(lambda: ads.synced.is_set() and ztunnel.sink.held)
        assert [one.type_url for one in istiod.requests[:2]] == [xds.ADDRESS_TYPE, xds.AUTHORIZATION_TYPE]
        assert {one.type_url for one in istiod.requests} == {xds.ADDRESS_TYPE, xds.AUTHORIZATION_TYPE}
        node = istiod.requests[0].node
        assert node.id == "ztunnel~10.0.0.9~ztunnel-x.istio-system~istio-system.svc.cluster.local"
        assert dict(node.metadata)["NAMESPACE"] == "istio-system"
        for metadata in istiod.metadata:
            assert (metadata["authorization"], metadata["clusterid"]) == ("Bearer a.b.c", "Kubernetes")
        (request,) = istiod.signed
        assert request.metadata["ImpersonatedIdentity"] == str(WEB)
        assert request.validity_duration == 86_400

    asyncio.run(test())


@pytest.mark.parametrize("ends_over_unknown", [False, True])
def test_asked_for_a_type_that_it_does_not_know_it_serves_the_others(tmp_path: Path, ends_over_unknown: bool) -> None:
    async def test() -> None:
        istiod = Istiod(Authority(), ends_over_unknown=ends_over_unknown)
        async with istiod.listening() as port:
            ztunnel = Ztunnel(port, folder_with(tmp_path, istiod.authority), asks_for_roots=True)
            async with ztunnel.running() as ads:
                # Three types asked for; if that ended the stream, the two on the next one.
                asked = 5 if ends_over_unknown else 3
                await until(lambda: ads.synced.is_set() and ads.connected and ztunnel.sink.held)
                await until(lambda: len([one for one in istiod.requests if one.HasField("node")]) >= asked)
                await asyncio.sleep(0.5)
                assert ads.connected
                assert len([one for one in istiod.requests if one.HasField("node")]) == asked
                assert ads.terminations["error"] == ends_over_unknown

    asyncio.run(test())


def test_another_root_at_the_control_plane_is_taken_from_the_mounted_file(tmp_path: Path) -> None:
    async def test() -> None:
        folder, renewed = tmp_path, Authority("renewed")
        istiod = Istiod(Authority())
        async with istiod.listening() as port:
            ztunnel = Ztunnel(port, folder_with(folder, renewed), asks_for_roots=False)
            async with ztunnel.running() as ads:
                await until(lambda: ads.terminations["connection_error"] >= 2)
                assert not istiod.requests
                mount(folder / "istio", {"root-cert.pem": renewed.pem + istiod.authority.pem})
                await until(ads.synced.is_set)

    asyncio.run(test())
