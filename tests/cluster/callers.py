"""A controller that judges tokens on a real API server, and callers that have one."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from controller.app import Controller
from controller.config import AuthorityConfig, CallersConfig, Config, ServeConfig, SourceConfig
from mesh.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from mesh.xds import ADDRESS_TYPE, DELTA_METHOD
from tests.cluster.alone import ApiAlone
from tests.support.pki import csr, p256

CREATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"


def config(tmp_path: Path, server: ApiAlone, namespace: str) -> Config:
    (tmp_path / "manifests").mkdir(exist_ok=True)
    return Config(
        state=tmp_path / "state",
        drain_s=0.2,
        source=SourceConfig(manifests=tmp_path / "manifests", kubeconfig=server.kubeconfig),
        serve=ServeConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0"),
        callers=CallersConfig(auth="tokens", node_accounts=(f"{namespace}/culvert-node",)),
        authority=AuthorityConfig(ca="kubernetes", ca_namespace=namespace),
    )


class Caller:
    """A process with a token; it trusts what it is told to."""

    def __init__(self, controller: Controller, roots: bytes, token: str) -> None:
        self._address = f"127.0.0.1:{controller.port}"
        self._roots = roots
        self._metadata = (("authorization", f"Bearer {token}"), ("clusterid", "Kubernetes"))

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[Any]:
        proof = grpc.ssl_channel_credentials(self._roots)
        async with grpc.aio.secure_channel(self._address, proof) as channel:
            yield channel

    async def ask(self, identity: str = "", request: str = "") -> grpc.StatusCode:
        """Ask for a certificate: of an identity, or of its own."""
        message = IstioCertificateRequest(csr=request or csr(p256()), validity_duration=3600)
        if identity:
            message.metadata["ImpersonatedIdentity"] = identity
        async with self._channel() as channel:
            method: Any = channel.unary_unary(
                CREATE,
                request_serializer=IstioCertificateRequest.SerializeToString,
                response_deserializer=IstioCertificateResponse.FromString,
            )
            try:
                await method(message, metadata=self._metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[Any]:
        """An open stream that has been answered once."""
        async with self._channel() as channel:
            method: Any = channel.stream_stream(
                DELTA_METHOD,
                request_serializer=DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=DeltaDiscoveryResponse.FromString,
            )
            call = method(metadata=self._metadata)
            await call.write(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, node=Node(id="n")))
            yield call
            call.cancel()
