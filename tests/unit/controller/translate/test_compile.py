"""Every recorded case translates to what was recorded, but for the differences that ADR 0002 argues."""

import pytest

from controller.index.objects import AuthorizationPolicy
from controller.translate.authorizations import judge
from mesh.wire.authorization_pb2 import Authorization
from mesh.wire.workload_pb2 import Address, LoadBalancing
from tests.unit.controller import recorded

# Cases of which our result differs on purpose; each has its own test below.
DIFFERENT = {"authz-dry-run"}

CASES = sorted(path.stem for path in recorded.FOLDER.glob("*.yaml") if path.stem != "base")


def policy_of(case_name: str) -> AuthorizationPolicy:
    (change,) = recorded.changes(recorded.load(case_name)["objects"])
    assert isinstance(change.object, AuthorizationPolicy)
    return change.object


def test_the_recordings_are_there() -> None:
    assert len(CASES) >= 35
    assert set(CASES) > DIFFERENT


def test_base_objects_translate_as_recorded() -> None:
    base = recorded.load("base")
    assert recorded.translate(recorded.documents(base)) == recorded.expected(base)


@pytest.mark.parametrize("name", sorted(set(CASES) - DIFFERENT))
def test_case_translates_as_recorded(name: str) -> None:
    base, case = recorded.load("base"), recorded.load(name)
    translated = recorded.translate([*recorded.documents(base), *recorded.documents(case)])
    assert translated == recorded.expected(case, base)


def test_dry_run_policy_is_sent_and_marked() -> None:
    base, case = recorded.load("base"), recorded.load("authz-dry-run")
    translated = recorded.translate([*recorded.documents(base), *recorded.documents(case)])
    policy = translated.pop("Authorization shop/p")
    assert isinstance(policy, Authorization)
    assert policy.dry_run
    assert policy.rules[0].clauses[0].matches[0].namespaces[0].exact == "plain"
    assert translated == recorded.expected(base)
    assert judge(policy_of("authz-dry-run")).reason == "DryRun"


def test_audit_policy_is_refused_with_a_reason() -> None:
    verdict = judge(policy_of("authz-audit"))
    assert not verdict.accepted
    assert verdict.reason == "UnsupportedAction"
    assert "AUDIT" in verdict.message


def test_policy_attached_to_a_service_is_refused_with_a_reason_while_there_is_no_waypoint() -> None:
    verdict = judge(policy_of("authz-target-service"))
    assert not verdict.accepted
    assert verdict.reason == "WaypointRequired"
    assert "Service web" in verdict.message


def test_prefer_same_node_prefers_the_node_itself() -> None:
    base, case = recorded.load("base"), recorded.load("service-prefer-close")
    case["objects"][0]["spec"]["trafficDistribution"] = "PreferSameNode"
    translated = recorded.translate([*recorded.documents(base), *recorded.documents(case)])
    near = translated["Address shop/near.shop.svc.cluster.local"]
    assert isinstance(near, Address)
    preference = near.service.load_balancing
    assert preference.mode == LoadBalancing.FAILOVER
    assert preference.routing_preference[-1] == LoadBalancing.NODE
    assert list(preference.routing_preference[:3]) == [LoadBalancing.NETWORK, LoadBalancing.REGION, LoadBalancing.ZONE]
