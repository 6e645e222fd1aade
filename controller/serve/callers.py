"""Who calls, and what that caller may do here.

A node shows a certificate of the mesh's own root with two URI names: the identity of node components and
`culvert://node/<name>`. The CA never signs the second for anybody who asks over the network, so a workload's
certificate, which is of the same root, is not a node's. Another kind of proof, a service account token, is
`controller.serve.tokens`; both are an `Authenticator`, and `Gate` stands before every method.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol

import grpc
from cryptography import x509

from controller.names import NODE_PREFIX, node_names
from controller.status.metrics import Metrics
from mesh.identity import Identity

log = logging.getLogger(__name__)

# Refusals that are logged in one period; a flood of them must not become a flood of lines. All are counted.
_LOGGED, _PERIOD_S = 20, 10.0


class Right(Enum):
    """What a method asks of its caller."""

    KNOWN = "a known caller"
    CONFIGURATION = "a node component, or an account of --reader-accounts"
    NODE = "a node component"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller: a component of a node, or a workload that speaks for itself only."""

    node: str  # where it runs; "" if that is not known (never for a component of a node)
    identity: Identity | None = None  # its own, which it may ask for; None: it has none to ask for
    is_node: bool = True  # it acts for the pods of its node
    may_read: bool = True  # it may have the mesh's configuration

    @property
    def name(self) -> str:
        """How logs and debug pages call it."""
        return self.node if self.is_node else str(self.identity)

    def has(self, right: Right) -> bool:
        """The caller may use methods that ask for this."""
        return right is Right.KNOWN or (self.is_node if right is Right.NODE else self.may_read)


class Unauthenticated(Exception):
    """The caller has shown nothing that says who it is; the message says what is missing, the reason is a label."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Undecided(Exception):
    """Who calls cannot be found out now; the same call may succeed later."""


class Context(Protocol):
    """The part of a gRPC call that says who calls."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What the transport verified."""

    def invocation_metadata(self) -> Any:
        """Names and values that came with the call."""

    def peer(self) -> str:
        """The address that calls."""


class Authenticator(Protocol):
    """Turns a call into its caller."""

    async def authenticate(self, context: Context) -> Caller:
        """The caller; raises Unauthenticated or Undecided."""


class NodeCertificates:
    """Authenticates by the client certificate, whose chain the TLS layer has verified."""

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain

    async def authenticate(self, context: Context) -> Caller:
        """The node of the certificate; raises Unauthenticated."""
        shown = list(context.auth_context().get("x509_pem_cert", ()))
        if not shown:
            raise Unauthenticated("no_certificate", "no client certificate")
        names = _uris(shown[0])
        nodes = [name.removeprefix(NODE_PREFIX) for name in names if name.startswith(NODE_PREFIX)]
        if len(nodes) != 1 or not nodes[0]:
            sentence = f"the client certificate names no node (it names {', '.join(names) or 'nothing'})"
            raise Unauthenticated("not_a_node", sentence)
        if set(names) != set(node_names(self._trust_domain, nodes[0])):
            sentence = f"the client certificate is not one of a node of {self._trust_domain}"
            raise Unauthenticated("not_a_node", sentence)
        return Caller(nodes[0])


@lru_cache(maxsize=1024)
def _uris(pem: bytes) -> tuple[str, ...]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


class RefusalLog:
    """Lines about what was refused: so many in one period, and then how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._period_ends = 0.0
        self._said = 0

    def warn(self, sentence: str) -> None:
        """One refusal."""
        now = self._clock()
        if now >= self._period_ends:
            if self._said > _LOGGED:
                log.warning("%d more refusals, which are counted and not logged", self._said - _LOGGED)
            self._period_ends, self._said = now + _PERIOD_S, 0
        self._said += 1
        if self._said <= _LOGGED:
            log.warning("%s", sentence)


class Gate:
    """Lets callers in or ends their call; every refusal is counted by reason, and logged without what was shown."""

    def __init__(
        self, authenticator: Authenticator, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._authenticator = authenticator
        self._metrics = metrics
        self._log = RefusalLog(clock)

    async def admit(self, context: "grpc.aio.ServicerContext[Any, Any]", right: Right) -> Caller:
        """The caller of a method; ends the call if there is none, if it lacks the right, or if nobody can say now."""
        try:
            caller = await self._authenticator.authenticate(context)
        except Unauthenticated as error:
            return await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, error.reason, str(error))
        except Undecided as error:
            return await self._refuse(context, grpc.StatusCode.UNAVAILABLE, "undecided", str(error))
        if not caller.has(right):
            sentence = f"{caller.name} is not {right.value}"
            return await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, "no_right", sentence)
        return caller

    async def _refuse(
        self, context: "grpc.aio.ServicerContext[Any, Any]", status: grpc.StatusCode, reason: str, sentence: str
    ) -> Caller:
        self._metrics.callers_refused.labels(reason).inc()
        self._log.warn(f"call from {context.peer()} refused ({reason}): {sentence}")
        await context.abort(status, sentence)
        raise AssertionError("abort raises")
