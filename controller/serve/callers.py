"""Who calls: the node whose agent or proxy stands behind a connection.

A node shows a certificate of the mesh's own root with two URI names: the identity of node components and
`culvert://node/<name>`. The CA never signs the second for anybody who asks over the network, so a workload's
certificate, which is of the same root, is not a node's. Another kind of proof (a service account token) is another
`Authenticator`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import grpc
from cryptography import x509

from controller.names import NODE_PREFIX, node_names


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated node."""

    node: str


class Unauthenticated(Exception):
    """The caller has shown nothing that makes it a node; the message says what is missing."""


class Context(Protocol):
    """The part of a gRPC call that says who calls."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the transport verified."""

    def peer(self) -> str:
        """The address that calls."""


class Authenticator(Protocol):
    """Turns a call into its caller."""

    def authenticate(self, context: Context) -> Caller:
        """The caller; raises Unauthenticated."""


class NodeCertificates:
    """Authenticates by the client certificate, whose chain the TLS layer has verified."""

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain

    def authenticate(self, context: Context) -> Caller:
        """The node of the certificate; raises Unauthenticated."""
        shown = list(context.auth_context().get("x509_pem_cert", ()))
        if not shown:
            raise Unauthenticated("no client certificate")
        names = _uris(shown[0])
        nodes = [name.removeprefix(NODE_PREFIX) for name in names if name.startswith(NODE_PREFIX)]
        if len(nodes) != 1 or not nodes[0]:
            raise Unauthenticated(f"the client certificate names no node (it names {', '.join(names) or 'nothing'})")
        if set(names) != set(node_names(self._trust_domain, nodes[0])):
            raise Unauthenticated(f"the client certificate is not one of a node of {self._trust_domain}")
        return Caller(nodes[0])


@lru_cache(maxsize=1024)
def _uris(pem: bytes) -> tuple[str, ...]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


async def require_caller(authenticator: Authenticator, context: "grpc.aio.ServicerContext[Any, Any]") -> Caller:
    """The caller of a gRPC method; ends the call with UNAUTHENTICATED if there is none."""
    try:
        return authenticator.authenticate(context)
    except Unauthenticated as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        raise AssertionError("abort raises") from error
