"""`istio.v1.auth.IstioCertificateService`: who gets a certificate of which identity.

A component of a node gets those of the pods of its node, named by `ImpersonatedIdentity`; whoever else is known gets
its own and no other. A request that names nobody is one for the caller's own.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from controller.ca.authority import InvalidRequest, Issued, NotIssued
from controller.serve.callers import Caller, Gate, RefusalLog, Right
from controller.status.metrics import Metrics
from mesh.identity import Identity, InvalidIdentity
from mesh.wire.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

log = logging.getLogger(__name__)

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = "CreateCertificate"

_IMPERSONATED = "ImpersonatedIdentity"

# node, namespace, service account -> a pod with it runs there
RunsOn = Callable[[str, str, str], bool]


class Signer(Protocol):
    """Makes certificates; it decides nothing about who may have what."""

    async def issue(self, csr_pem: str, identity: Identity, lifetime_s: int) -> Issued:
        """A leaf for the key of a CSR; raises InvalidRequest or NotIssued."""


class _Refused(Exception):
    def __init__(self, status: grpc.StatusCode, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason


class CertificateService:
    """The gRPC method. A refusal is logged, counted by reason, and says to the node what was wrong."""

    def __init__(self, signer: Signer, gate: Gate, runs_on: RunsOn, trust_domain: str, metrics: Metrics) -> None:
        self._signer = signer
        self._gate = gate
        self._runs_on = runs_on
        self._trust_domain = trust_domain
        self._metrics = metrics
        self._log = RefusalLog()
        self._knows_pods = False

    def open_for_nodes(self) -> None:
        """Start to answer for others: the first full set of objects is known.

        Before that every pod would look like one that runs nowhere, and its node like one that asks for too much.
        """
        self._knows_pods = True

    async def create(self, data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        """Sign a request."""
        caller = await self._gate.admit(context, Right.KNOWN)
        try:
            return await self._sign(data, caller)
        except _Refused as refusal:
            self._metrics.refusals.labels(refusal.reason).inc()
            self._log.warn(f"certificate refused to {caller.name} ({refusal.reason}): {refusal}")
            await context.abort(refusal.status, str(refusal))
            raise AssertionError("abort raises") from refusal

    async def _sign(self, data: bytes, caller: Caller) -> bytes:
        try:
            request = IstioCertificateRequest.FromString(data)
        except DecodeError as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "malformed", f"not a request: {error}") from error
        identity = self._authorise(request, caller)
        try:
            issued = await self._signer.issue(request.csr, identity, request.validity_duration)
        except InvalidRequest as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "csr", str(error)) from error
        except NotIssued as error:
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "issuer", str(error)) from error
        self._metrics.certificates.inc()
        log.info("certificate of %s signed for %s", identity, caller.name)
        return IstioCertificateResponse(cert_chain=issued.pem_chain).SerializeToString()

    def _authorise(self, request: IstioCertificateRequest, caller: Caller) -> Identity:
        fields = request.metadata.fields
        text = fields[_IMPERSONATED].string_value if _IMPERSONATED in fields else ""
        if not text:
            if caller.identity is None:
                sentence = f"the request names no identity (metadata {_IMPERSONATED})"
                raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "malformed", sentence)
            return caller.identity
        try:
            identity = Identity.parse(text)
        except InvalidIdentity as error:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "malformed", str(error)) from error
        denied = grpc.StatusCode.PERMISSION_DENIED
        if identity.trust_domain != self._trust_domain:
            raise _Refused(denied, "trust_domain", f"{identity} is not of trust domain {self._trust_domain}")
        if identity == caller.identity:
            return identity
        if not caller.is_node:
            raise _Refused(denied, "not_own", f"{caller.name} may have its own identity only, not {identity}")
        if not self._knows_pods:
            sentence = "the pods of the cluster are not known here yet"
            raise _Refused(grpc.StatusCode.UNAVAILABLE, "not_ready", sentence)
        if not self._runs_on(caller.node, identity.namespace, identity.service_account):
            raise _Refused(denied, "not_on_node", f"no pod with {identity} runs on node {caller.node}")
        return identity
