"""The roots of the mesh as the controller pushes them: one resource, the whole bundle each time."""

from collections.abc import Callable, Mapping

from google.protobuf.message import DecodeError

from mesh import xds
from mesh.wire.trust_pb2 import Roots
from ztunnel.identity.svid import BadCertificate


class RootsUpdates:
    """Takes updates of the type; a bundle that cannot be used is refused, and the last one stays in force."""

    def __init__(self, trust: Callable[[str], None]) -> None:
        self._trust = trust

    def apply(self, update: xds.Update) -> Mapping[str, str]:
        """Take one update; returns what was refused and why. That roots are removed says nothing: a mesh has some."""
        refused = {}
        for changed in update.changed:
            try:
                self._trust(Roots.FromString(changed.value).pem)
            except (DecodeError, BadCertificate) as error:
                refused[changed.name] = str(error)
        return refused
