"""Where a node's programs, maps and links are pinned, and where their manifest is."""

import re
from dataclasses import dataclass
from pathlib import Path

from bpf.layout import SCHEMA

BPFFS = Path("/sys/fs/bpf")
RUNTIME = Path("/run/culvert")


def escape(key: str) -> str:
    """A node's key as a name on bpffs, which refuses dots; different keys stay different."""
    if not key or not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", key):
        raise ValueError(f"node key {key!r}: letters, digits, '.', '_' and '-' only")
    return key.replace("_", "_5f").replace(".", "_2e")


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The places of one node's set."""

    key: str
    bpffs: Path = BPFFS
    runtime: Path = RUNTIME

    @property
    def node(self) -> Path:
        """All that is pinned for the node."""
        return self.bpffs / "culvert" / escape(self.key)

    @property
    def set(self) -> Path:
        """The set that is in use."""
        return self.node / f"v{SCHEMA}"

    @property
    def maps(self) -> Path:
        """Pinned maps, by name."""
        return self.set / "maps"

    @property
    def programs(self) -> Path:
        """Pinned programs, by name."""
        return self.set / "progs"

    @property
    def links(self) -> Path:
        """Pinned links at the cgroup root, by program name."""
        return self.set / "links"

    @property
    def pods(self) -> Path:
        """One directory per enrolled pod, by netns cookie."""
        return self.set / "pods"

    @property
    def state(self) -> Path:
        """Manifest and lock: ordinary files, which bpffs cannot hold."""
        return self.runtime / self.key / "bpf"

    @property
    def manifest(self) -> Path:
        """What was loaded, when and from what."""
        return self.state / "manifest.json"

    @property
    def lock(self) -> Path:
        """Held by whoever changes what is pinned."""
        return self.state / "lock"

    def inbound(self, netns_cookie: int) -> Path:
        """The sk_lookup link of a pod."""
        return self.pods / str(netns_cookie) / "inbound"

    def guard(self, netns_cookie: int, index: int) -> Path:
        """The tcx link on the node's end of one of a pod's links, by the index of that end."""
        return self.pods / str(netns_cookie) / f"guard-{index}"
