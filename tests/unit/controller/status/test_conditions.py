"""From what is known of a policy to the condition on it."""

import dataclasses
import datetime
from typing import Any

from controller.index.index import Index
from controller.index.objects import Kind
from controller.sources.base import Fault, Written
from controller.status.conditions import Patch, patches
from tests.unit.controller import recorded
from tests.unit.controller.nodes import policy

NOW = datetime.datetime(2026, 11, 21, 12, 0, tzinfo=datetime.UTC)
KEY = (Kind.AUTHORIZATION_POLICY, "shop/p")


def written(*conditions: dict[str, Any], generation: int = 3) -> Written:
    return Written("security.istio.io/v1", "uid", "77", generation, conditions)


def plan(spec: dict[str, Any] | None, stands: Written, *faults: Fault) -> list[Patch]:
    index = Index("culvert-system")
    if spec is not None:
        index.apply(recorded.changes([policy("p", spec)]))
    return patches({KEY: stands}, index, faults, NOW)


def condition(**changes: Any) -> dict[str, Any]:
    base = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 3}
    return {**base, "lastTransitionTime": "2026-01-01T00:00:00Z", **changes}


DENY = {"action": "DENY", "rules": [{}]}


def test_a_policy_that_is_enforced_is_accepted() -> None:
    (patch,) = plan(DENY, written())
    assert patch.conditions == [condition(lastTransitionTime="2026-11-21T12:00:00Z")]


def test_nothing_is_written_that_stands_there_already() -> None:
    assert plan(DENY, written(condition())) == []


def test_the_unsupported_field_is_named() -> None:
    rules = [{"to": [{"operation": {"methods": ["GET"]}}]}]
    (patch,) = plan({"action": "ALLOW", "rules": rules}, written())
    (found,) = patch.conditions
    assert (found["status"], found["reason"]) == ("True", "PartiallyEnforced")
    assert "rules[0]" in found["message"]
    assert "methods" in found["message"]
    (patch,) = plan({"action": "CUSTOM"}, written())
    assert (patch.conditions[0]["status"], patch.conditions[0]["reason"]) == ("False", "UnsupportedAction")


def test_a_malformed_field_is_named_and_what_is_in_force_instead() -> None:
    fault = Fault("/apis/…", "AuthorizationPolicy shop/p", "spec.rules[0].form", "is not a known field here")
    (patch,) = plan(DENY, written(condition(observedGeneration=2)), fault)
    (found,) = patch.conditions
    assert (found["status"], found["reason"], found["observedGeneration"]) == ("False", "Invalid", 3)
    assert found["message"].startswith("spec.rules[0].form: is not a known field here; the last version")
    assert found["lastTransitionTime"] == "2026-11-21T12:00:00Z"
    (patch,) = plan(None, written(), fault)
    assert patch.conditions[0]["message"].endswith("nothing of it is enforced")


def test_a_new_generation_keeps_the_time_of_the_last_turn() -> None:
    (patch,) = plan(DENY, written(condition(observedGeneration=2)))
    assert patch.conditions == [condition()]


def test_the_conditions_of_others_stay() -> None:
    other = {"type": "WaypointAccepted", "status": "False", "reason": "x"}
    (patch,) = plan(DENY, written(other, condition(status="Unknown")))
    assert patch.conditions[0] == other
    assert len(patch.conditions) == 2


def test_what_is_in_force_instead_of_a_malformed_version_is_kept_and_then_let_go() -> None:
    fault = Fault("/apis/…", "AuthorizationPolicy shop/p", "spec.action", "is none")
    (patch,) = plan(DENY, dataclasses.replace(written(), understood="good"), fault)
    assert patch.kept == "good"
    says = patch.conditions[0]
    assert plan(DENY, dataclasses.replace(written(says), understood="good", kept="good"), fault) == []
    (patch,) = plan(DENY, dataclasses.replace(written(condition()), kept="good"))
    assert (patch.conditions, patch.kept) == ((condition(),), "")


def test_of_a_peer_authentication_too() -> None:
    index = Index("culvert-system")
    document = policy("strict", {"mtls": {"mode": "DISABLE"}}, "PeerAuthentication")
    index.apply(recorded.changes([document]))
    key = (Kind.PEER_AUTHENTICATION, "shop/strict")
    (patch,) = patches({key: written()}, index, (), NOW)
    assert patch.conditions[0]["reason"] == "PartiallyEnforced"


def test_an_object_that_is_not_known_yet_is_left_alone() -> None:
    assert plan(None, written()) == []
