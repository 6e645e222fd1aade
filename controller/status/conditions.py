"""What a policy's author reads on the policy: the condition `Accepted`, with the field that is the matter.

Pure: from what is known to the patches that make it so. Other writers' conditions stay as they are; a patch names the
version that it was made from, so that none of theirs is lost.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.index.index import Index
from controller.index.objects import AuthorizationPolicy, Kind, PeerAuthentication
from controller.sources.base import Fault, ObjectKey, Written
from controller.status.report import judge_peer
from controller.translate.authorizations import Verdict, judge

TYPE = "Accepted"
INVALID = "Invalid"

_MESSAGE_LENGTH = 1024  # a condition may have 32 KiB; nobody reads that


@dataclass(frozen=True, slots=True)
class Patch:
    """The conditions that an object should have, made from a version of it, and what its status should keep."""

    key: ObjectKey
    written: Written
    conditions: Sequence[Mapping[str, Any]]
    kept: str


def patches(
    written: Mapping[ObjectKey, Written], index: Index, faults: Iterable[Fault], now: datetime.datetime
) -> list[Patch]:
    """What has to be written; nothing for an object that says it already."""
    by_object = {fault.object: fault for fault in faults if fault.object}
    found = []
    for key, stands in sorted(written.items(), key=lambda entry: (entry[0][0].value, entry[0][1])):
        fault = by_object.get(f"{key[0].value} {key[1]}")
        verdict = _of_fault(fault, key, index) if fault else _verdict(key, index)
        if verdict is None:
            continue
        conditions, has_changed = _conditions(stands, verdict, now)
        if has_changed or stands.understood != stands.kept:
            found.append(Patch(key, stands, conditions, stands.understood))
    return found


def _verdict(key: ObjectKey, index: Index) -> Verdict | None:
    match index.get(*key):
        case AuthorizationPolicy() as policy:
            return judge(policy)
        case PeerAuthentication() as peer:
            return judge_peer(peer, index.root_namespace)
    return None


def _of_fault(fault: Fault, key: ObjectKey, index: Index) -> Verdict:
    what = f"{fault.field}: {fault.message}" if fault.field else fault.message
    has_last_good = index.get(*key) is not None
    then = "the last version that was understood stays in force" if has_last_good else "nothing of it is enforced"
    return Verdict(False, INVALID, f"{what}; {then}")


def _conditions(written: Written, verdict: Verdict, now: datetime.datetime) -> tuple[Sequence[Mapping[str, Any]], bool]:
    """All conditions with ours brought up to date, and whether it was not."""
    status = "True" if verdict.accepted else "False"
    says = {
        "type": TYPE,
        "status": status,
        "reason": verdict.reason,
        "message": verdict.message[:_MESSAGE_LENGTH],
        "observedGeneration": written.generation,
    }
    before = next((one for one in written.conditions if one.get("type") == TYPE), {})
    if all(before.get(name) == value for name, value in says.items()):
        return written.conditions, False
    has_turned = before.get("status") != status
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ") if has_turned else before.get("lastTransitionTime")
    others = [one for one in written.conditions if one.get("type") != TYPE]
    return [*others, {**says, "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ")}], True


PLURALS: Mapping[Kind, str] = {
    Kind.AUTHORIZATION_POLICY: "authorizationpolicies",
    Kind.PEER_AUTHENTICATION: "peerauthentications",
}
