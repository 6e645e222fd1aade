"""What the agent knows of pods and namespaces, whatever source they come from, and which pods it enrols.

A source yields whole snapshots: what runs on this node now. What the agent makes of them depends on nothing else, so
sources (the runtime directory of a lab, an API server) are exchangeable.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mesh.addresses import IPAddress
from mesh.enrolment import MESH_LABEL, asked_by


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod of this node."""

    uid: str
    namespace: str
    name: str
    service_account: str
    node: str
    addresses: tuple[IPAddress, ...]
    netns: str  # path of its network namespace
    labels: Mapping[str, str] = field(default_factory=dict)
    host_network: bool = False

    @property
    def full_name(self) -> str:
        """`namespace/name`, as people name it."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a source knows at one moment; `faults` are objects that it could not read, and why."""

    pods: Mapping[str, Pod]  # by uid
    namespaces: Mapping[str, Mapping[str, str]]  # labels by name
    faults: tuple[str, ...] = ()


class PodSource(Protocol):
    """Where pods come from."""

    def snapshots(self) -> AsyncIterator[Snapshot]:
        """What is there now, and again after each change; never ends."""


class SourceUnavailable(Exception):
    """There is no way to where pods come from; the text says where it was looked for."""


class RefusalKind(StrEnum):
    """Why a pod cannot be enrolled, as metrics name it."""

    LABEL = "label"
    HOST_NETWORK = "host_network"
    OTHER_NODE = "other_node"
    NO_NAMESPACE = "no_namespace"
    SHARED_NAMESPACE = "shared_namespace"
    OTHER_SET = "other_set"
    NO_ADDRESS = "no_address"
    PORT_IN_USE = "port_in_use"
    PORT_RESERVED = "port_reserved"  # the pod is enrolled, and one of its processes wants a port that is the mesh's


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pod that asks for the mesh is not enrolled, in a word and in a sentence."""

    kind: RefusalKind
    text: str

    def __str__(self) -> str:
        return self.text


def port_reserved(ports: Sequence[int]) -> Refusal:
    """What to tell whoever runs an enrolled pod of which a process was refused these ports."""
    return Refusal(
        RefusalKind.PORT_RESERVED,
        f"a process of the pod was refused TCP port {', '.join(map(str, ports))} (bind: Address already in use): "
        "15001, 15006 and 15008 are the mesh's in every enrolled pod; let it listen elsewhere, or keep the pod out "
        f"of the mesh (label {MESH_LABEL}=disabled)",
    )


@dataclass(frozen=True, slots=True)
class Wish:
    """Whether a pod's labels ask for the mesh, and why it is refused all the same."""

    enrol: bool
    refusal: Refusal | None = None


def wish_of(pod: Pod, namespaces: Mapping[str, Mapping[str, str]], node: str, *, istio_labels: bool) -> Wish:
    """What the labels of a pod and its namespace ask for (mesh.enrolment), and what stands against it."""
    asked = asked_by(pod.labels, namespaces.get(pod.namespace, {}), istio_labels=istio_labels)
    if asked.fault:
        return Wish(enrol=False, refusal=Refusal(RefusalKind.LABEL, asked.fault))
    return Wish(enrol=asked.enrol, refusal=_refusal(pod, node) if asked.enrol else None)


def _refusal(pod: Pod, node: str) -> Refusal | None:
    if pod.host_network:
        return Refusal(RefusalKind.HOST_NETWORK, "the pod uses the node's network, which is never captured")
    if pod.node != node:
        return Refusal(RefusalKind.OTHER_NODE, f"the pod belongs to node {pod.node}, this is {node}")
    if not pod.netns:
        return Refusal(RefusalKind.NO_NAMESPACE, "the pod has no network namespace")
    if not pod.addresses:
        return Refusal(RefusalKind.NO_ADDRESS, "the pod has no address yet")
    return None
