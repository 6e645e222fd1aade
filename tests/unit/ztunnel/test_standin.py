"""What stands in for a policy that cannot be understood: for whom, and that it refuses everything."""

import pytest
from google.protobuf.message import DecodeError

from mesh.wire import authorization_pb2 as security
from tests.unit.ztunnel.mesh_builder import authorization
from ztunnel.authorize import Connection, policy_matches
from ztunnel.model import PolicyScope
from ztunnel.standin import stand_in

NAMESPACE, SELECTOR, GLOBAL = PolicyScope.NAMESPACE, PolicyScope.WORKLOAD_SELECTOR, PolicyScope.GLOBAL
# A rule whose string is not UTF-8: the message as a whole cannot be decoded, its first fields can.
BROKEN_RULE = b"\x2a\x0a\x0a\x08\x12\x06\x0a\x04\x0a\x02\xff\xfe"


def head(scope: int, name: str = "p", namespace: str = "shop", **more: object) -> bytes:
    return security.Authorization(name=name, namespace=namespace, scope=scope, **more).SerializeToString()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "scope"),
    [
        (head(1), NAMESPACE),
        (head(2), SELECTOR),
        (head(0), GLOBAL),
        (head(0) + BROKEN_RULE, GLOBAL),
        (head(2) + BROKEN_RULE, SELECTOR),
        (head(7), NAMESPACE),
        (b"", NAMESPACE),
        (b"\xff\xff", NAMESPACE),
        (head(0, name="other"), NAMESPACE),
        (head(0, namespace="other"), NAMESPACE),
    ],
    ids=[
        "namespace",
        "selector",
        "global",
        "broken global",
        "broken selector",
        "scope of the future",
        "empty",
        "garbage",
        "another name",
        "another namespace",
    ],
)
def test_it_refuses_everything_for_those_it_was_meant_for(value: bytes, scope: PolicyScope) -> None:
    found = stand_in("shop/p", value, "why")
    assert found is not None
    assert (found.name, found.namespace, found.scope) == ("shop/p", "shop", scope)
    assert found.deny and not found.dry_run
    assert found.fault == "why"
    for identity in (None, "spiffe://td/ns/a/sa/b"):
        assert policy_matches(found, Connection.of(identity, bytes(16), bytes(16), 80)) == 0


def test_the_broken_rule_of_these_tests_cannot_be_decoded() -> None:
    with pytest.raises(DecodeError):
        security.Authorization.FromString(head(0) + BROKEN_RULE)


def test_what_was_never_to_be_enforced_is_not_enforced() -> None:
    found = stand_in("shop/p", head(1, dry_run=True), "why")
    assert found is not None and found.dry_run


@pytest.mark.parametrize("name", ["p", "", "shop/"])
def test_a_name_that_is_no_policys_has_no_stand_in(name: str) -> None:
    assert stand_in(name, authorization("p").SerializeToString(), "why") is None


def test_without_a_namespace_it_does_not_become_everybodys() -> None:
    found = stand_in("/p", head(1, namespace=""), "why")
    assert found is not None and found.scope is SELECTOR
