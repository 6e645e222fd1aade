"""Which pods are captured, as their nodes' agents say.

HBONE is announced for a pod only while it stands here. A node's report is the whole of what it captures and replaces
its last one. It stays in force when the agent's stream drops, and over a restart of the controller (it is kept in a
file): the programs that capture a pod live in the kernel, not in the agent, and to announce plain TCP for a pod that is
still captured would send in clear what its peers would have encrypted. What ends it is the agent's next report or the
pod's own end (docs/adr/0003-capture-reports.md).

In a cluster an agent also annotates the pods, for controllers that it is not connected to: of a node that has not
reported here the annotations count, and while a node's agent is away from here an annotation that *changes* is newer
than its last report and moves that pod.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from controller.files import write_atomically
from controller.index.objects import Pod

log = logging.getLogger(__name__)


class Captures:
    """Reports by node. Its single writer is the pipeline; `path` None keeps nothing over a restart."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._by_node: dict[str, dict[str, str]] = _load(path) if path else {}
        self._connected: Counter[str] = Counter()  # agents by node: two while one takes over from the other

    def report(self, node: str, pods: Mapping[str, str]) -> set[str]:
        """Take a node's report (pod key -> uid); the keys of it and of its last one whose capture may have changed."""
        before = self._by_node.get(node)
        if before == pods:
            return set()
        self._by_node[node] = dict(pods)
        self._save()
        before = before or {}
        return {key for key in before.keys() | pods.keys() if before.get(key) != pods.get(key)}

    def connect(self, node: str) -> None:
        """An agent of the node talks to this controller."""
        self._connected[node] += 1

    def disconnect(self, node: str) -> None:
        """An agent of the node no longer does."""
        self._connected[node] -= 1
        if not self._connected[node]:
            del self._connected[node]

    def has_reported(self, node: str) -> bool:
        """What the node captures is known from its agent."""
        return node in self._by_node

    def is_captured(self, pod: Pod) -> bool:
        """The agent of the pod's node captures this very pod, not an earlier one of its name."""
        reported = self._by_node.get(pod.node)
        if reported is None:
            return pod.is_annotated_captured
        uid = reported.get(pod.key)
        return uid is not None and (not pod.uid or not uid or uid == pod.uid)

    def note_annotation(self, before: Pod | None, after: Pod) -> None:
        """A pod is new or has changed; a change from `pending` to nothing says nothing about a report."""
        was = before is not None and before.uid == after.uid and before.is_annotated_captured
        reported = self._by_node.get(after.node)
        if reported is None or self._connected[after.node] or was == after.is_annotated_captured:
            return
        if after.is_annotated_captured:
            reported[after.key] = after.uid
        elif reported.pop(after.key, None) is None:
            return
        self._save()

    def forget(self, gone: Iterable[Pod]) -> None:
        """Drop pods that no longer exist: a later one of the same name starts uncaptured.

        The report of the later one may have come first; it stays.
        """
        dropped = [self._by_node[pod.node].pop(pod.key) for pod in gone if self.is_captured(pod) and self._knows(pod)]
        if dropped:
            self._save()

    def forget_node(self, node: str) -> None:
        """Drop a node that no longer exists, unless something of it is still captured or its agent is connected."""
        if self._by_node.get(node) == {} and not self._connected[node]:
            del self._by_node[node]
            self._save()

    def view(self) -> dict[str, list[str]]:
        """Captured pods by node, for people."""
        return {node: sorted(pods) for node, pods in sorted(self._by_node.items()) if pods}

    def _knows(self, pod: Pod) -> bool:
        return pod.key in self._by_node.get(pod.node, {})

    def _save(self) -> None:
        if self._path:
            write_atomically(self._path, json.dumps(self._by_node, sort_keys=True).encode())


def _load(path: Path) -> dict[str, dict[str, str]]:
    try:
        document = json.loads(path.read_text())
        return {str(node): {str(key): str(uid) for key, uid in pods.items()} for node, pods in document.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("captured pods of earlier reports are lost (%s: %s); agents will report again", path, error)
        return {}
