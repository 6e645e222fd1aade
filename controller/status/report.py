"""What is wrong with which object, for its author: `status.json` of a source that has no status subresource.

Written only when it differs. Each policy appears with what becomes of it; each malformed file, document or object with
the field and the fault.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controller.files import write_atomically
from controller.index.index import Index
from controller.index.objects import AuthorizationPolicy, Kind, Mode, Object, PeerAuthentication
from controller.sources.base import Fault
from controller.translate.authorizations import Verdict, judge

FILE = "status.json"


class StatusReport:
    """Keeps `status.json` true; the only writer of it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._faults: Sequence[Fault] = ()
        self._last = b""
        self._entries: dict[tuple[Kind, str], tuple[Object, dict[str, Any]]] = {}  # judged once per version
        self.view: dict[str, Any] = {"policies": [], "faults": []}

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """What the source could not use."""
        self._faults = tuple(faults)

    def write(self, index: Index) -> None:
        """Bring the file up to date with the index."""
        self._judge_all(index)
        policies = [entry for _, entry in self._entries.values()]
        self.view = {"policies": policies, "faults": [_fault(one) for one in self._faults]}
        if self._path is None:
            return
        data = json.dumps(self.view, indent=2).encode() + b"\n"
        if data != self._last:
            write_atomically(self._path, data, 0o644)
        self._last = data

    def refused(self) -> list[dict[str, str]]:
        """What has no effect because of a fault: the object's name and why."""
        found = [
            {"object": fault["object"], "why": ": ".join(filter(None, (fault["field"], fault["message"])))}
            for fault in self.view["faults"]
        ]
        for policy in self.view["policies"]:
            if not policy["accepted"]:
                name = f"{policy['kind']} {policy['namespace']}/{policy['name']}"
                found.append({"object": name, "why": policy["message"] or policy["reason"]})
        return found

    def _judge_all(self, index: Index) -> None:
        before, self._entries = self._entries, {}
        for kind in (Kind.AUTHORIZATION_POLICY, Kind.PEER_AUTHENTICATION):
            for item in index.all(kind):
                if not isinstance(item, AuthorizationPolicy | PeerAuthentication):
                    continue
                known = before.get((kind, item.key))
                if known is None or known[0] is not item:
                    known = item, _entry(kind, item, _verdict(item, index.root_namespace))
                self._entries[kind, item.key] = known

    @property
    def not_accepted(self) -> int:
        """Policies of which nothing is enforced."""
        return sum(not policy["accepted"] for policy in self.view["policies"])


def judge_peer(peer: PeerAuthentication, root_namespace: str) -> Verdict:
    """What the author of a PeerAuthentication should know."""
    modes = [peer.mode, *(mode for _, mode in peer.ports)]
    if peer.selector and peer.namespace == root_namespace:
        return Verdict(
            False, "SelectorInRootNamespace", "a policy of the root namespace applies to all, not to a selector"
        )
    if Mode.DISABLE in modes:
        return Verdict(
            True, "PartiallyEnforced", "DISABLE is PERMISSIVE here: plain text and mutual TLS are both let in"
        )
    return Verdict(True)


def _verdict(item: AuthorizationPolicy | PeerAuthentication, root_namespace: str) -> Verdict:
    return judge_peer(item, root_namespace) if isinstance(item, PeerAuthentication) else judge(item)


def _entry(kind: Kind, item: AuthorizationPolicy | PeerAuthentication, verdict: Verdict) -> dict[str, Any]:
    return {
        "kind": kind.value,
        "namespace": item.namespace,
        "name": item.name,
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "message": verdict.message,
    }


def _fault(fault: Fault) -> dict[str, str]:
    return {"place": fault.place, "object": fault.object, "field": fault.field, "message": fault.message}
