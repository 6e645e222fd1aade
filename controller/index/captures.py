"""Which pods are captured, as their nodes' agents say.

HBONE is announced for a pod only while it stands here. A node's report is the whole of what it captures and replaces
its last one. It stays in force when the agent's stream drops, and over a restart of the controller (it is kept in a
file): the programs that capture a pod live in the kernel, not in the agent, and to announce plain TCP for a pod that is
still captured would send in clear what its peers would have encrypted. What ends it is the agent's next report or the
pod's own end (docs/adr/0003-capture-reports.md).
"""

import json
import logging
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

    def report(self, node: str, pods: Mapping[str, str]) -> set[str]:
        """Take a node's report (pod key -> uid); the keys whose capture may have changed."""
        before = self._by_node.get(node, {})
        if before == pods:
            return set()
        if pods:
            self._by_node[node] = dict(pods)
        else:
            self._by_node.pop(node, None)
        self._save()
        return {key for key in before.keys() | pods.keys() if before.get(key) != pods.get(key)}

    def is_captured(self, pod: Pod) -> bool:
        """The agent of the pod's node captures this very pod, not an earlier one of its name."""
        uid = self._by_node.get(pod.node, {}).get(pod.key)
        return uid is not None and (not pod.uid or not uid or uid == pod.uid)

    def forget(self, gone: Iterable[Pod]) -> None:
        """Drop pods that no longer exist: a later one of the same name starts uncaptured."""
        dropped = [self._by_node[pod.node].pop(pod.key) for pod in gone if pod.key in self._by_node.get(pod.node, {})]
        if dropped:
            self._save()

    def view(self) -> dict[str, list[str]]:
        """Captured pods by node, for people."""
        return {node: sorted(pods) for node, pods in sorted(self._by_node.items())}

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
