"""What a lab makes outside its own directory, written down before it is made: so that `lab down` finds it all, also
when the supervisor was killed in between.
"""

import os

from bpf import features
from lab import names, namespaces
from lab.paths import NETNS, LabPaths


class Record:
    """The names a lab has claimed; one writer, the supervisor's loop."""

    def __init__(self, paths: LabPaths) -> None:
        self._paths = paths
        self._made_directory = not os.path.ismount(NETNS)
        self._mounts_bpffs = not features.bpffs().is_met  # the loader will
        self._netns: set[str] = set()
        self._names: dict[str, str] = {}
        self._keys: set[str] = set()

    def claim_netns(self, *parts: str) -> str:
        """A free name for a namespace."""
        name = names.netns_name((self._paths.lab, *parts), self._netns | namespaces.names())
        self._netns.add(name)
        self.write()
        return name

    def name(self, target: str, netns: str) -> None:
        """Let people say `node/NODE` or `fabric` to `lab exec`."""
        self._names[target] = netns
        self.write()

    def release_netns(self, name: str) -> None:
        """The namespace is gone."""
        self._netns.discard(name)
        self.write()

    def claim_key(self, node: str) -> None:
        """The runtime directory and pins of a node."""
        self._keys.add(names.node_key(self._paths.lab, node))
        self.write()

    def write(self) -> None:
        """Write it down."""
        self._paths.write(
            self._paths.record,
            {
                "lab": self._paths.lab,
                "supervisor": os.getpid(),
                "made_netns_directory": self._made_directory,
                "mounts_bpffs": self._mounts_bpffs,
                "netns": sorted(self._netns),
                "names": self._names,
                "keys": sorted(self._keys),
            },
        )
