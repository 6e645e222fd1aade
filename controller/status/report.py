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
from controller.index.objects import AuthorizationPolicy, Kind, Mode, PeerAuthentication
from controller.sources.base import Fault
from controller.translate.authorizations import Verdict, judge

FILE = "status.json"


class StatusReport:
    """Keeps `status.json` true; the only writer of it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._faults: Sequence[Fault] = ()
        self._last = b""
        self.view: dict[str, Any] = {"policies": [], "faults": []}

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """What the source could not use."""
        self._faults = tuple(faults)

    def write(self, index: Index) -> None:
        """Bring the file up to date with the index."""
        self.view = {"policies": list(map(_entry, _policies(index))), "faults": [_fault(one) for one in self._faults]}
        data = json.dumps(self.view, indent=2).encode() + b"\n"
        if self._path is not None and data != self._last:
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


def _policies(index: Index) -> list[tuple[Kind, str, str, Verdict]]:
    found = []
    for item in (*index.all(Kind.AUTHORIZATION_POLICY), *index.all(Kind.PEER_AUTHENTICATION)):
        if isinstance(item, AuthorizationPolicy):
            found.append((Kind.AUTHORIZATION_POLICY, item.namespace, item.name, judge(item)))
        elif isinstance(item, PeerAuthentication):
            verdict = judge_peer(item, index.root_namespace)
            found.append((Kind.PEER_AUTHENTICATION, item.namespace, item.name, verdict))
    return found


def _entry(policy: tuple[Kind, str, str, Verdict]) -> dict[str, Any]:
    kind, namespace, name, verdict = policy
    return {
        "kind": kind.value,
        "namespace": namespace,
        "name": name,
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "message": verdict.message,
    }


def _fault(fault: Fault) -> dict[str, str]:
    return {"place": fault.place, "object": fault.object, "field": fault.field, "message": fault.message}
