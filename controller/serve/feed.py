"""What one stream still needs: which resources go into its next response of a type.

A feed starts from what the node says it holds, and from then on follows the revisions of the store. It knows nothing of
nonces or sockets. Responses are bounded in bytes; what does not fit waits for the next one.
"""

from collections.abc import Iterable, Mapping

from controller.serve.store import Batch, ResourceSet
from mesh.xds import Subscription

# A response far below the 4 MiB that gRPC takes by default; large enough that 10,000 workloads are a few responses.
MAX_RESPONSE_BYTES = 1 << 20

_NOTHING = Batch()


class Feed:
    """The pending part of one type on one stream; owned by that stream."""

    def __init__(self, resources: ResourceSet, wanted: Subscription) -> None:
        self._resources = resources
        self._wanted = wanted
        self.revision = 0  # everything up to here is sent or in `_pending`
        self._started = False
        self._pending: dict[str, None] = {}  # ordered names, sent or removed in their form at that time
        self._followed: set[str] = set()  # names that an on-demand subscription led to

    @property
    def is_drained(self) -> bool:
        """Nothing waits and nothing newer exists."""
        return not self._pending and self.revision == self._resources.revision

    def is_behind(self, revision: int) -> bool:
        """Something waits, or the store was past what this feed has taken when it stood at a revision."""
        return bool(self._pending) or self.revision < revision

    def start(self, held: Mapping[str, str]) -> None:
        """Begin: queue what the node lacks or holds in another version, and what it holds in vain."""
        self.revision = self._resources.revision
        self._started = True
        for name, version in held.items():
            resource = self._resources.get(name)
            if resource is None or (resource.version != version and not self._wanted.is_wildcard):
                self._pending[name] = None
            if not self._wanted.is_wildcard:
                self._followed.add(name)
        self._queue_wanted(held)

    def widen(self, names: Iterable[str]) -> None:
        """Queue what a wider subscription asks for; a name that stands for nothing is answered as removed."""
        self._queue_wanted({}, names)

    def narrow(self, names: Iterable[str]) -> None:
        """Stop following names; what was sent stays with the node."""
        for name in names:
            self._followed.difference_update(self._resources.find(name))
        for name in self._wanted.names:
            self._follow(name)

    def next_batch(self, *, removals: bool = True) -> Batch:
        """Take the content of the next response; without `removals` these stay queued."""
        if self.is_drained:
            return _NOTHING
        if self._wanted.is_wildcard and self._started and not self._pending:
            shared = self._resources.since(self.revision)
            if shared is not None and (removals or not shared.removed):
                self.revision = self._resources.revision
                return shared
        self._catch_up()
        batch, waiting = self._resources.gather(list(self._pending), MAX_RESPONSE_BYTES, removals=removals)
        self._pending = dict.fromkeys(waiting)
        return batch

    def _catch_up(self) -> None:
        if not self._started:
            return
        for name in self._resources.changed_since(self.revision):
            if self._is_wanted(name):
                self._pending.pop(name, None)
                self._pending[name] = None
        self.revision = self._resources.revision

    def _is_wanted(self, name: str) -> bool:
        if self._wanted.is_wildcard or name in self._wanted.names or name in self._followed:
            return True
        resource = self._resources.get(name)
        if resource is not None and any(tag in self._wanted.names or tag in self._followed for tag in resource.tags):
            self._followed.add(name)
            return True
        return False

    def _queue_wanted(self, held: Mapping[str, str], names: Iterable[str] | None = None) -> None:
        if self._wanted.is_wildcard:
            wanted: Iterable[str] = self._resources.names()
        else:
            wanted = [
                found for name in (self._wanted.names if names is None else names) for found in self._follow(name)
            ]
        for name in wanted:
            resource = self._resources.get(name)
            if resource is None or held.get(name) != resource.version:
                self._pending[name] = None

    def _follow(self, name: str) -> list[str]:
        """Names that a subscribed name leads to: itself, what carries it as alias, and the endpoints of a service."""
        direct = sorted(self._resources.find(name))
        endpoints = [member for found in direct for member in sorted(self._resources.find(found))]
        found = list(dict.fromkeys((*direct, *endpoints)))
        self._followed.update(found)
        return found or [name]
