"""The label set that Istio's dashboards use for TCP, made from what a connection is known by.

A missing value is the word `unknown`, as those dashboards expect it.
"""

from dataclasses import dataclass

from mesh.reasons import Reason
from ztunnel.model import Service, Workload

UNKNOWN = "unknown"

NAMES = (
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
)

# Words of Istio's `response_flags` for our reasons; every other failure is `CONNECT`, success is `-`.
_FLAGS = {
    Reason.OK: "-",
    Reason.POLICY_DENIED: "DENY",
    Reason.POLICY_CHANGED: "DENY",
    Reason.PEER_DENIED: "DENY",
    Reason.TLS_FAILED: "TLS_FAILURE",
    Reason.TLS_UNTRUSTED: "TLS_FAILURE",
    Reason.CERTIFICATE_EXPIRED: "TLS_FAILURE",
    Reason.HANDSHAKE_TIMEOUT: "TLS_FAILURE",
    Reason.PROTOCOL_ERROR: "H2_HANDSHAKE_FAILURE",
    Reason.IDENTITY_UNAVAILABLE: "IDENTITY_ERROR",
}

# Ends of a connection that did its work: no failure in Istio's sense.
_ENDED = frozenset({Reason.RESET_DOWNSTREAM, Reason.RESET_UPSTREAM, Reason.DRAINED, Reason.POD_GONE})


def response_flags(reason: Reason) -> str:
    """Istio's flag for a reason."""
    return "-" if reason in _ENDED else _FLAGS.get(reason, "CONNECT")


@dataclass(frozen=True, slots=True)
class Edge:
    """Both ends of a connection as far as they are known; `mutual_tls` when HBONE carried it."""

    inbound: bool
    source: Workload | None
    destination: Workload | None
    service: Service | None
    source_principal: str
    destination_principal: str
    mutual_tls: bool


def values(edge: Edge, flags: str) -> tuple[str, ...]:
    """The values of NAMES, in order."""
    service = edge.service
    return (
        "destination" if edge.inbound else "source",
        *_workload(edge.source, edge.source_principal),
        service.hostname if service else UNKNOWN,
        service.namespace if service else UNKNOWN,
        service.hostname.partition(".")[0] if service else UNKNOWN,
        *_workload(edge.destination, edge.destination_principal),
        "tcp",
        flags,
        "mutual_tls" if edge.mutual_tls else UNKNOWN,
    )


def _workload(workload: Workload | None, principal: str) -> tuple[str, ...]:
    if workload is None:
        return (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, principal or UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    return (
        workload.workload_name or UNKNOWN,
        workload.canonical_name or UNKNOWN,
        workload.canonical_revision or UNKNOWN,
        workload.namespace,
        principal or UNKNOWN,
        workload.canonical_name or UNKNOWN,
        workload.canonical_revision or UNKNOWN,
        workload.cluster_id or UNKNOWN,
    )
