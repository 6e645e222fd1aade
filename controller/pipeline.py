"""The single writer: batches of changes in, resources in the store out.

index -> targets -> translation -> store -> hub, in one step without awaiting, so that a reader never sees half of a
batch. Level-triggered: a target is translated from what the index holds now, whatever changed it.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from controller.index.index import Target, What
from controller.index.objects import Change, Kind, Pod
from controller.serve.hub import Hub
from controller.status.metrics import Metrics
from controller.translate.compile import Inputs, compile_target
from mesh.xds import ADDRESS_TYPE

log = logging.getLogger(__name__)


class Pipeline:
    """Owns the index, the captures and the store as their only writer."""

    def __init__(self, inputs: Inputs, hub: Hub, metrics: Metrics) -> None:
        self.inputs = inputs
        self._hub = hub
        self._metrics = metrics
        self._names: dict[Target, Sequence[tuple[str, str]]] = {}  # type and name of each target's resources

    def apply(self, changes: Sequence[Change]) -> None:
        """Take a batch of object changes."""
        shrunk = self._note_captures(changes)
        self._translate(self.inputs.index.apply(changes))
        self._forget_nodes(shrunk)
        for kind, count in self.inputs.index.counts().items():
            self._metrics.objects.labels(kind).set(count)

    def agent_came(self, node: str) -> None:
        """An agent of the node has connected."""
        self.inputs.captures.connect(node)

    def agent_left(self, node: str) -> None:
        """An agent of the node has disconnected; its last report stays."""
        self.inputs.captures.disconnect(node)

    def _note_captures(self, changes: Sequence[Change]) -> set[str]:
        """What the batch says of captures, before the index forgets what was there; which nodes it takes of."""
        captures = self.inputs.captures
        shrunk = set()
        for change in changes:
            if change.kind is Kind.NODE and change.object is None:
                shrunk.add(change.key)
            elif change.kind is Kind.POD:
                before = self.inputs.index.pod(change.key)
                if before is not None and _is_pod_end(change):
                    captures.forget([before])
                    shrunk.add(before.node)
                if isinstance(change.object, Pod) and not change.object.is_terminal:
                    captures.note_annotation(before, change.object)
        return shrunk

    def _forget_nodes(self, nodes: Iterable[str]) -> None:
        """Let go of what nodes have reported of which there is nothing left, so that no pod's capture depends on it."""
        index = self.inputs.index
        for node in nodes:
            if not index.pods_on(node) and index.get(Kind.NODE, node) is None:
                self.inputs.captures.forget_node(node)

    def report(self, node: str, pods: Mapping[str, str]) -> int:
        """Take an agent's report; the revision of addresses that announces it."""
        captures = self.inputs.captures
        # Of a node that reports for the first time, annotations have counted until now.
        known = set() if captures.has_reported(node) else self.inputs.index.pods_on(node)
        keys = captures.report(node, pods)
        self._translate(Target(What.POD, key) for key in keys | known)
        return self._hub.sets[ADDRESS_TYPE].revision

    def _translate(self, targets: Iterable[Target]) -> None:
        started = time.monotonic()
        count = changed = 0
        for target in targets:
            count += 1
            changed += self._translate_one(target)
        if changed:
            for type_url, resources in self._hub.sets.items():
                self._metrics.resources.labels(type_url.rpartition(".")[2].lower()).set(len(resources))
            log.debug("%d targets, %d resources changed in %.1f ms", count, changed, 1e3 * (time.monotonic() - started))
            self._hub.changed()

    def _translate_one(self, target: Target) -> int:
        compiled = compile_target(target, self.inputs)
        self._metrics.encoded.inc(len(compiled))
        names = [(resource.type_url, resource.name) for resource in compiled]
        changed = sum(self._hub.sets[resource.type_url].put(resource) for resource in compiled)
        for type_url, name in self._names.get(target, ()):
            if (type_url, name) not in names:
                changed += self._hub.sets[type_url].remove(name)
        if names:
            self._names[target] = tuple(names)
        else:
            self._names.pop(target, None)
        return changed


def _is_pod_end(change: Change) -> bool:
    return change.object is None or (isinstance(change.object, Pod) and change.object.is_terminal)
