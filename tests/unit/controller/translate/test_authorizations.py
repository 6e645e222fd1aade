"""Policies beyond the recorded cases: what is enforced of them, what their authors are told, what is refused."""

from typing import Any

import pytest

from controller.index.fields import ObjectFault
from controller.index.objects import AuthorizationPolicy, Kind
from controller.index.parse import parse
from controller.translate.authorizations import authorization, judge
from controller.translate.facts import Mesh
from mesh.wire.authorization_pb2 import Authorization
from tests.unit.controller.nodes import policy


def made(spec: dict[str, Any]) -> AuthorizationPolicy:
    item = parse(policy("p", spec), Kind.AUTHORIZATION_POLICY)
    assert isinstance(item, AuthorizationPolicy)
    return item


def sent(spec: dict[str, Any], mesh: Mesh | None = None) -> Authorization:
    message = authorization(made(spec), mesh or Mesh())
    assert message is not None
    return message


def source(**fields: Any) -> dict[str, Any]:
    return {"rules": [{"from": [{"source": fields}]}]}


def when(key: str, *values: str) -> dict[str, Any]:
    return {"when": [{"key": key, "values": list(values)}]}


def test_wildcards() -> None:
    (match,) = sent(source(principals=["*", "*/sa/x", "td/ns/*", "td/ns/a/sa/x"])).rules[0].clauses[0].matches
    assert [one.WhichOneof("match_type") for one in match.principals] == ["presence", "suffix", "prefix", "exact"]
    assert (match.principals[1].suffix, match.principals[2].prefix) == ("/sa/x", "td/ns/")


def test_service_accounts_stand_in_the_policys_namespace_unless_they_name_one() -> None:
    (match,) = (
        sent(source(serviceAccounts=["client", "other/web"], notServiceAccounts=["x"])).rules[0].clauses[0].matches
    )
    accounts = [(one.namespace, one.serviceAccount) for one in match.service_accounts]
    assert accounts == [("shop", "client"), ("other", "web")]
    assert match.not_service_accounts[0].namespace == "shop"


def test_cluster_local_means_the_meshs_own_trust_domain() -> None:
    spec = source(principals=["cluster.local/ns/a/sa/b", "elsewhere/ns/a/sa/b"])
    (match,) = sent(spec, Mesh(trust_domain="prod.example")).rules[0].clauses[0].matches
    assert [one.exact for one in match.principals] == ["prod.example/ns/a/sa/b", "elsewhere/ns/a/sa/b"]


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("source.namespace", "a", "namespaces"),
        ("source.principal", "a", "principals"),
        ("source.ip", "10.0.0.0/8", "source_ips"),
        ("destination.ip", "10.0.0.1", "destination_ips"),
        ("destination.port", "80", "destination_ports"),
    ],
)
def test_conditions_that_nodes_can_check(key: str, value: str, field: str) -> None:
    both = {"when": [{"key": key, "values": [value], "notValues": [value]}]}
    (match,) = sent({"rules": [both]}).rules[0].clauses[0].matches
    assert {descriptor.name for descriptor, _ in match.ListFields()} == {field, f"not_{field}"}


L7 = [
    {"to": [{"operation": {"methods": ["GET"]}}]},
    {"to": [{"operation": {"notPaths": ["/x"]}}]},
    {"from": [{"source": {"requestPrincipals": ["*"]}}]},
    {"from": [{"source": {"remoteIpBlocks": ["10.0.0.0/8"]}}]},
    when("remote.ip", "10.0.0.1"),
    when("request.auth.claims[x]", "y"),
]


@pytest.mark.parametrize("rule", L7)
def test_an_allow_rule_that_needs_a_request_is_left_out_whole_and_said(rule: dict[str, Any]) -> None:
    spec = {"rules": [rule, {"from": [{"source": {"namespaces": ["a"]}}]}]}
    assert len(sent(spec).rules) == 1
    verdict = judge(made(spec))
    assert (verdict.accepted, verdict.reason) == (True, "PartiallyEnforced")
    assert verdict.message.startswith("rules[0] is left out")


def test_an_allow_policy_of_nothing_but_such_rules_allows_nothing() -> None:
    message = sent({"rules": [L7[0]]})
    assert not message.rules  # no rule matches, and an ALLOW policy is there: everything is refused


def test_a_deny_rule_loses_only_the_part_that_needs_a_request() -> None:
    spec = {"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}]}
    (match,) = sent(spec).rules[0].clauses[0].matches
    assert list(match.destination_ports) == [80]
    assert "denies more than written: methods" in judge(made(spec)).message


def test_a_deny_rule_of_which_nothing_is_left_has_no_effect_and_its_author_hears_it() -> None:
    verdict = judge(made({"action": "DENY", "rules": [L7[0]]}))
    assert "rules[0] has no effect" in verdict.message


def test_a_principal_written_as_a_spiffe_id_never_matches_and_its_author_hears_it() -> None:
    assert "never matches" in judge(made(source(principals=["spiffe://cluster.local/ns/a/sa/b"]))).message


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"action": "DENNY"}, "spec.action"),
        ({"rule": []}, "spec.rule"),
        ({"rules": {}}, "spec.rules"),
        ({"rules": [{"form": []}]}, "spec.rules[0].form"),
        (source(principal=["x"]), "spec.rules[0].from[0].source.principal"),
        (source(ipBlocks=["10.0.0.0/40"]), "spec.rules[0].from[0].source.ipBlocks[0]"),
        (source(namespaces=[""]), "spec.rules[0].from[0].source.namespaces[0]"),
        ({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}, "spec.rules[0].to[0].operation.ports[0]"),
        ({"rules": [{"when": [{"key": "source.ip"}]}]}, "spec.rules[0].when[0]"),
        ({"selector": {"matchExpressions": []}}, "spec.selector.matchExpressions"),
    ],
)
def test_a_malformed_policy_is_refused_by_its_field(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(ObjectFault) as caught:
        made(spec)
    assert caught.value.path == path


def test_a_dry_run_annotation_that_is_neither_true_nor_false_is_refused() -> None:
    document = policy("p", {})
    document["metadata"]["annotations"] = {"istio.io/dry-run": "maybe"}
    with pytest.raises(ObjectFault, match="maybe"):
        parse(document, Kind.AUTHORIZATION_POLICY)


def test_a_block_keeps_the_address_as_written() -> None:
    (match,) = sent(source(ipBlocks=["10.1.2.3/8", "::1"])).rules[0].clauses[0].matches
    assert [(one.address, one.length) for one in match.source_ips] == [
        (bytes([10, 1, 2, 3]), 8),
        (bytes(15) + b"\x01", 128),
    ]
