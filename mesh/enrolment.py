"""Which pods are in the mesh: what the labels of a pod and of its namespace ask for.

One answer for all: the node agent enrols by it, the lab waits by it, the controller shows by it what is asked and not
yet done. The first label that is there decides, in this order:

1. the pod's `culvert.io/mesh`: `enabled` or `disabled`
2. the pod's `istio.io/dataplane-mode`: `ambient` or `none` (where Istio's labels are honoured)
3. the namespace's `culvert.io/mesh`
4. the namespace's `istio.io/dataplane-mode` (likewise)

So the nearer object wins over the farther one, and on one object our own label over Istio's. Without any of them a pod
is left alone. A value that is none of these decides too: the pod is not enrolled, and the fault says which label.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# What the agent writes on a pod about its capture; everything but CAPTURED means: not captured (yet, or any more).
CAPTURE_ANNOTATION = "culvert.io/capture"
CAPTURED, PENDING, BYPASSING = "enabled", "pending", "bypassing"

# The same for Istio's control plane: the annotation of Istio's CNI, "enabled" or not there.
ISTIO_ANNOTATION = "ambient.istio.io/redirection"

MESH_LABEL = "culvert.io/mesh"
ISTIO_LABEL = "istio.io/dataplane-mode"

_WORDS: Mapping[str, Mapping[str, bool]] = {
    MESH_LABEL: {"enabled": True, "disabled": False},
    ISTIO_LABEL: {"ambient": True, "none": False},
}


@dataclass(frozen=True, slots=True)
class Asked:
    """Whether labels ask for the mesh; `fault` is why they are not understood, and then they do not."""

    enrol: bool
    fault: str = ""


def asked_by(pod: Mapping[str, str], namespace: Mapping[str, str], *, istio_labels: bool) -> Asked:
    """What the labels of a pod and of its namespace ask for."""
    for label, value in _in_order(pod, namespace, istio_labels=istio_labels):
        words = _WORDS[label]
        if value not in words:
            return Asked(enrol=False, fault=f"label {label}: {value!r} is neither {' nor '.join(words)}")
        return Asked(enrol=words[value])
    return Asked(enrol=False)


def _in_order(pod: Mapping[str, str], namespace: Mapping[str, str], *, istio_labels: bool) -> Iterator[tuple[str, str]]:
    for labels in (pod, namespace):
        for label in (MESH_LABEL, ISTIO_LABEL) if istio_labels else (MESH_LABEL,):
            if label in labels:
                yield label, labels[label]
