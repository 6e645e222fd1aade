"""Names that a lab gives to what the kernel keeps: namespaces, links, node keys."""

import hashlib
import re
from collections.abc import Container

# <lab>-<node> becomes part of socket paths, of which the kernel takes 107 bytes.
MAX_LAB = 32
MAX_NODE = 48
# Longer names stay readable to nobody; the file system would take 255.
MAX_NETNS = 96

_LAB = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def lab_fault(name: str) -> str | None:
    """Why a name cannot be a lab's, or None."""
    if len(name) > MAX_LAB or not _LAB.fullmatch(name):
        return f"{name!r} cannot name a lab: lower-case letters, digits and '-', at most {MAX_LAB}"
    return None


def node_fault(name: str) -> str | None:
    """Why a name cannot be a node's in a lab, or None."""
    if len(name) > MAX_NODE or not is_subdomain(name):
        return f"{name!r} cannot name a node of a lab: lower-case letters, digits, '-' and '.', at most {MAX_NODE}"
    return None


def is_subdomain(name: str) -> bool:
    """Whether Kubernetes takes this as the name of an object."""
    return len(name) <= 253 and bool(_SUBDOMAIN.fullmatch(name))


def node_key(lab: str, node: str) -> str:
    """The name under which a node's runtime files and pins stand."""
    return f"{lab}-{node}"


def netns_name(parts: tuple[str, ...], taken: Container[str]) -> str:
    """`cv-<lab>-<node>[-<namespace>-<pod>]`; with a hash when it is long or already another one's name."""
    plain = "-".join(("cv", *parts))
    if len(plain) <= MAX_NETNS and plain not in taken:
        return plain
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]
    return f"{plain[: MAX_NETNS - 11]}-{digest}"


def link_name(namespace: str, pod: str) -> str:
    """The node's end of a pod's link; 15 characters are all that the kernel takes."""
    return "cv" + hashlib.sha256(f"{namespace}/{pod}".encode()).hexdigest()[:12]
