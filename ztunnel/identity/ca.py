"""The CA as seen from a node: `istio.v1.auth.IstioCertificateService` over the controller's channel."""

from collections.abc import Callable, Sequence

import grpc.aio

from mesh.channel import CredentialFault
from mesh.identity import Identity
from mesh.wire import ca_pb2
from ztunnel.identity.manager import CaUnavailable

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
TIMEOUT_S = 10.0

Metadata = Sequence[tuple[str, str]]


class GrpcCa:
    """Asks the controller's CA on behalf of a pod; the caller's own credentials say which node asks."""

    def __init__(self, channel: Callable[[], grpc.aio.Channel], metadata: Callable[[], Metadata], ttl_s: int) -> None:
        self._channel = channel
        self._metadata = metadata
        self._ttl_s = ttl_s

    async def sign(self, identity: Identity, csr_pem: str) -> list[str]:
        """The signed chain; raises CaUnavailable with the status and the CA's own words."""
        try:
            channel, metadata = self._channel(), tuple(self._metadata())
        except CredentialFault as fault:
            raise CaUnavailable(str(fault)) from fault
        request = ca_pb2.IstioCertificateRequest(csr=csr_pem, validity_duration=self._ttl_s)
        request.metadata.update({"ImpersonatedIdentity": str(identity)})
        call = channel.unary_unary(
            METHOD,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        try:
            answer = await call(request, metadata=metadata, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise CaUnavailable(f"CA answered {error.code().name}: {error.details()}") from error
        return list(answer.cert_chain)
