"""Who has connected to local pods lately: what a policy that is not applied yet can be tried on.

One entry per peer identity, source address, pod and port, with how often and when last; the longest unused gives way.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mesh.reasons import Reason
from ztunnel.events import ConnectionEvent
from ztunnel.telemetry.labels import Edge

# About 1 MB at most.
LIMIT = 4096

Key = tuple[str, str, str, str, int]
PolicyName = Callable[[int], str | None]


@dataclass(slots=True)
class _Entry:
    namespace: str
    name: str
    count: int = 0
    last_us: int = 0
    refused_by: str | None = None
    is_refused: bool = False


class RecentFlows:
    """Fed with connections that have ended; those that are open are added when somebody asks."""

    def __init__(self, policy_name: PolicyName, limit: int = LIMIT) -> None:
        self._policy_name = policy_name
        self._limit = limit
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def ended(self, event: ConnectionEvent, edge: Edge) -> None:
        """Take a connection that is over, or was never let in."""
        self._take(self._entries, event, edge)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def view(self, live: Iterable[tuple[ConnectionEvent, Edge]]) -> list[dict[str, Any]]:
        """Everything, the latest last, as plain values."""
        open_ones: OrderedDict[Key, _Entry] = OrderedDict()
        for event, edge in live:
            self._take(open_ones, event, edge)
        return [_row(key, entry) for entries in (self._entries, open_ones) for key, entry in entries.items()]

    def _take(self, entries: "OrderedDict[Key, _Entry]", event: ConnectionEvent, edge: Edge) -> None:
        target = event.upstream or event.original
        if not edge.inbound or edge.destination is None or event.downstream is None or target is None:
            return
        pod = edge.destination
        key = (event.identity, str(event.downstream.ip), pod.uid, str(target.ip), target.port)
        entry = entries.setdefault(key, _Entry(pod.namespace, pod.name))
        entries.move_to_end(key)
        entry.count += 1
        entry.last_us = max(entry.last_us, event.time_us)
        entry.is_refused = event.reason in (Reason.POLICY_DENIED, Reason.POLICY_CHANGED)
        entry.refused_by = self._policy_name(event.policy) if entry.is_refused and event.policy else None


def _row(key: Key, entry: _Entry) -> dict[str, Any]:
    identity, source, uid, address, port = key
    return {
        "identity": identity or None,
        "source": source,
        "uid": uid,
        "namespace": entry.namespace,
        "name": entry.name,
        "address": address,
        "port": port,
        "allowed": not entry.is_refused,
        "policy": entry.refused_by,
        "connections": entry.count,
        "last": entry.last_us / 1e6,
    }
