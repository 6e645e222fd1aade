"""`istio.v1.auth.IstioCertificateService`: certificates for the pods of the node that asks, and for nobody else."""

import logging
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError

from controller.ca.authority import Authority, InvalidRequest, IssuerExpired
from controller.serve.callers import Authenticator, Caller, require_caller
from controller.status.metrics import Metrics
from mesh.identity import Identity, InvalidIdentity
from mesh.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

log = logging.getLogger(__name__)

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = "CreateCertificate"

_IMPERSONATED = "ImpersonatedIdentity"

# node, namespace, service account -> a pod with it runs there
RunsOn = Callable[[str, str, str], bool]


class _Refused(Exception):
    def __init__(self, status: grpc.StatusCode, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason


class CertificateService:
    """The gRPC method. A refusal is logged, counted by reason, and says to the node what was wrong."""

    def __init__(
        self, authority: Authority, authenticator: Authenticator, runs_on: RunsOn, trust_domain: str, metrics: Metrics
    ) -> None:
        self._authority = authority
        self._authenticator = authenticator
        self._runs_on = runs_on
        self._trust_domain = trust_domain
        self._metrics = metrics

    async def create(self, data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        """Sign a request."""
        caller = await require_caller(self._authenticator, context)
        try:
            return self._sign(data, caller)
        except _Refused as refusal:
            self._metrics.refusals.labels(refusal.reason).inc()
            log.warning("certificate refused to node %s: %s", caller.node, refusal)
            await context.abort(refusal.status, str(refusal))
            raise AssertionError("abort raises") from refusal

    def _sign(self, data: bytes, caller: Caller) -> bytes:
        try:
            request = IstioCertificateRequest.FromString(data)
        except DecodeError as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "malformed", f"not a request: {error}") from error
        identity = self._authorise(request, caller)
        try:
            issued = self._authority.sign_request(request.csr, identity, request.validity_duration)
        except InvalidRequest as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "csr", str(error)) from error
        except IssuerExpired as error:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "issuer", str(error)) from error
        self._metrics.certificates.inc()
        log.info("certificate of %s signed for node %s", identity, caller.node)
        return IstioCertificateResponse(cert_chain=issued.pem_chain).SerializeToString()

    def _authorise(self, request: IstioCertificateRequest, caller: Caller) -> Identity:
        fields = request.metadata.fields
        text = fields[_IMPERSONATED].string_value if _IMPERSONATED in fields else ""
        if not text:
            sentence = f"the request names no identity (metadata {_IMPERSONATED})"
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "malformed", sentence)
        try:
            identity = Identity.parse(text)
        except InvalidIdentity as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "malformed", str(error)) from error
        denied = grpc.StatusCode.PERMISSION_DENIED
        if identity.trust_domain != self._trust_domain:
            raise _Refused(denied, "trust_domain", f"{identity} is not of trust domain {self._trust_domain}")
        if not self._runs_on(caller.node, identity.namespace, identity.service_account):
            raise _Refused(denied, "not_on_node", f"no pod with {identity} runs on node {caller.node}")
        return identity
