"""What the agent keeps of a pod's document: a few fields, read once, with whatever is missing left empty."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.addresses import IPAddress, from_bytes16, to_bytes16
from mesh.enrolment import CAPTURE_ANNOTATION, ISTIO_ANNOTATION
from mesh.kube.documents import annotations_of, labels_of

# On a static pod's document: the uid by which the kubelet and the runtime know it.
_MIRRORED = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True)
class Record:
    """A pod as the API server has it."""

    uid: str
    runtime_uid: str  # the name of its cgroup has this one
    namespace: str
    name: str
    node: str
    service_account: str
    labels: Mapping[str, str]
    host_network: bool
    addresses: tuple[IPAddress, ...]
    phase: str
    annotation: str  # what it says about its capture
    istio_annotation: str  # and what it says to Istio's control plane

    @property
    def has_ended(self) -> bool:
        """All of its containers have ended for good."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def full_name(self) -> str:
        """`namespace/name`, as people name it."""
        return f"{self.namespace}/{self.name}"


def decode(document: Mapping[str, Any]) -> Record:
    """A pod of its document, which the API server has validated."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    annotations = annotations_of(document)
    listed = [entry.get("ip", "") for entry in status.get("podIPs") or ()] or [status.get("podIP") or ""]
    return Record(
        uid=metadata["uid"],
        runtime_uid=annotations.get(_MIRRORED) or metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec.get("nodeName") or "",
        service_account=spec.get("serviceAccountName") or "default",
        labels=labels_of(document),
        host_network=bool(spec.get("hostNetwork")),
        addresses=tuple(address for text in listed if (address := _address(text)) is not None),
        phase=status.get("phase") or "",
        annotation=annotations.get(CAPTURE_ANNOTATION) or "",
        istio_annotation=annotations.get(ISTIO_ANNOTATION) or "",
    )


def _address(text: str) -> IPAddress | None:
    try:
        address = from_bytes16(to_bytes16(text))
    except ValueError:
        return None
    return None if address.is_loopback or address.is_unspecified or address.is_multicast else address
