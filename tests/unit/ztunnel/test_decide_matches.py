"""What the fields of a rule match, by the reference and by the engine alike."""

import pytest

from mesh.wire import authorization_pb2 as security
from tests.unit.ztunnel.decisions import (
    ALICE,
    BOB,
    NOBODY,
    exact,
    matches,
    presence,
    rule,
    rule_matches,
)
from tests.unit.ztunnel.mesh_builder import ip
from ztunnel.decide import Peer


def test_rule_without_clauses_matches_everything() -> None:
    assert rule_matches(security.Rule(), NOBODY)


def test_clause_without_matches_is_true() -> None:
    assert rule_matches(security.Rule(clauses=[security.Clause()]), NOBODY)


def test_match_without_fields_never_matches() -> None:
    assert not matches(security.Match(), ALICE)
    assert rule_matches(rule(security.Match(), security.Match(destination_ports=[80])), ALICE)


def test_all_clauses_must_hold() -> None:
    port, other = security.Match(destination_ports=[80]), security.Match(destination_ports=[81])
    both = security.Rule(clauses=[security.Clause(matches=[port]), security.Clause(matches=[other])])
    either = security.Rule(clauses=[security.Clause(matches=[port, other])])
    assert not rule_matches(both, ALICE)
    assert rule_matches(either, ALICE)


def test_all_fields_of_a_match_must_hold() -> None:
    assert matches(security.Match(destination_ports=[79, 80], namespaces=[exact("shop")]), ALICE)
    assert not matches(security.Match(destination_ports=[80], namespaces=[exact("zoo")]), ALICE)


@pytest.mark.parametrize("value", ["cluster.local/ns/shop/sa/alice", "spiffe://cluster.local/ns/shop/sa/alice"])
def test_principal_is_compared_without_its_scheme(value: str) -> None:
    assert matches(security.Match(principals=[exact(value)]), ALICE)
    assert not matches(security.Match(not_principals=[exact(value)]), ALICE)


def test_no_identity_matches_no_principal_not_even_presence() -> None:
    assert not matches(security.Match(principals=[presence()]), NOBODY)
    assert not matches(security.Match(principals=[security.StringMatch(prefix="")]), NOBODY)
    assert matches(security.Match(principals=[presence()]), ALICE)


def test_strict_is_not_principals_presence() -> None:
    strict = security.Match(not_principals=[presence()])
    assert matches(strict, NOBODY)
    assert not matches(strict, ALICE)


@pytest.mark.parametrize(
    "identity", ["", "spiffe://", "alice", "spiffe://td/ns//sa/a", "spiffe://td/ns/n/sa/a/", "spiffe://td/ns/n/sa"]
)
def test_identity_of_another_form_counts_as_none(identity: str) -> None:
    assert matches(security.Match(not_principals=[presence()]), Peer(identity, ip("10.0.0.7")))


def test_prefix_and_suffix() -> None:
    assert matches(security.Match(principals=[security.StringMatch(prefix="spiffe://cluster.local/ns/sh")]), ALICE)
    assert matches(security.Match(principals=[security.StringMatch(suffix="/sa/alice")]), ALICE)
    assert not matches(security.Match(principals=[security.StringMatch(suffix="x" * 600)]), ALICE)
    assert not matches(security.Match(principals=[exact("")]), ALICE)


def test_namespaces_come_from_the_identity() -> None:
    assert matches(security.Match(namespaces=[exact("shop")]), ALICE)
    assert not matches(security.Match(namespaces=[exact("shop")]), NOBODY)
    assert matches(security.Match(not_namespaces=[exact("shop")]), NOBODY)


def test_service_accounts_come_from_the_identity() -> None:
    account = security.ServiceAccountMatch(namespace="shop", serviceAccount="alice")
    assert matches(security.Match(service_accounts=[account]), ALICE)
    assert not matches(security.Match(service_accounts=[account]), BOB)
    assert matches(security.Match(not_service_accounts=[account]), NOBODY)


@pytest.mark.parametrize(
    ("address", "length", "holds"),
    [
        ("10.0.0.7", 32, True),
        ("10.0.0.0", 30, False),
        ("10.0.0.6", 31, True),
        ("10.99.99.99", 8, True),
        ("0.0.0.0", 0, True),
        ("::", 0, False),
        ("::ffff:10.0.0.7", 128, True),
    ],
)
def test_source_ranges(address: str, length: int, holds: bool) -> None:
    raw = ip(address) if ":" in address else ip(address)[12:]
    source = security.Address(address=raw, length=length)
    assert matches(security.Match(source_ips=[source]), ALICE) is holds
    assert matches(security.Match(not_source_ips=[source]), ALICE) is not holds


def test_range_of_ipv6() -> None:
    source = security.Address(address=ip("fd00::"), length=9)
    assert matches(security.Match(source_ips=[source]), Peer(None, ip("fd7f::1")))
    assert not matches(security.Match(source_ips=[source]), Peer(None, ip("fd80::1")))


def test_destination_is_the_applications() -> None:
    here = security.Address(address=ip("10.0.0.1"), length=128)
    assert matches(security.Match(destination_ips=[here], destination_ports=[80]), ALICE)
    assert not matches(security.Match(not_destination_ips=[here]), ALICE)
    assert not matches(security.Match(not_destination_ports=[80]), ALICE)
