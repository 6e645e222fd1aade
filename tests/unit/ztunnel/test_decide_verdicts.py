"""Which policies judge a connection, in which order, and who is named."""

from mesh.wire import authorization_pb2 as security
from tests.unit.ztunnel.decisions import (
    ALICE,
    AT,
    BOB,
    DENY,
    FROM_ALICE,
    NOBODY,
    SERVER,
    judge,
    rule,
)
from tests.unit.ztunnel.mesh_builder import Lab, authorization, workload
from ztunnel.decide import Verdict, inbound


def test_without_policies_everybody_is_let_in() -> None:
    assert judge(Lab(SERVER), NOBODY) == Verdict(True)


def test_unknown_workload_lets_nobody_in() -> None:
    lab = Lab(SERVER)
    assert not inbound(lab.store, 99, ALICE, AT).allow
    assert not lab.engine_verdict(99, ALICE, AT).allow


def test_the_engine_lets_nobody_into_a_workload_of_another_node() -> None:
    lab = Lab(workload("server", "10.0.0.1", node="node-b"))
    assert inbound(lab.store, lab.number("server"), ALICE, AT).allow
    assert not lab.engine_verdict(lab.number("server"), ALICE, AT).allow
    lab.put(SERVER)
    assert lab.engine_verdict(lab.number("server"), ALICE, AT).allow


def test_allow_lets_in_whom_it_names_and_refuses_others_by_its_name() -> None:
    lab = Lab(SERVER, authorization("only-alice", FROM_ALICE))
    policy = lab.number("shop/only-alice")
    assert judge(lab, ALICE) == Verdict(True, policy)
    assert judge(lab, BOB) == Verdict(False, policy)
    assert judge(lab, NOBODY) == Verdict(False, policy)
    assert "shop/only-alice" in judge(lab, BOB).trail[-1]


def test_deny_wins_over_allow() -> None:
    lab = Lab(SERVER, authorization("a", FROM_ALICE), authorization("z", FROM_ALICE, action=DENY))
    assert judge(lab, ALICE) == Verdict(False, lab.number("shop/z"))


def test_allow_without_rules_denies_all_and_deny_without_rules_nothing() -> None:
    assert not judge(Lab(SERVER, authorization("p")), ALICE).allow
    assert judge(Lab(SERVER, authorization("p", action=DENY)), ALICE).allow


def test_dry_run_policies_are_reported_and_never_enforced() -> None:
    deny = Lab(SERVER, authorization("d", FROM_ALICE, action=DENY, dry_run=True))
    assert judge(deny, ALICE) == Verdict(True, 0, deny.number("shop/d"))
    assert judge(deny, BOB) == Verdict(True)
    allow = Lab(SERVER, authorization("a", FROM_ALICE, dry_run=True))
    assert judge(allow, ALICE) == Verdict(True)
    assert judge(allow, BOB) == Verdict(True, 0, allow.number("shop/a"))


def test_dry_run_allow_refuses_nobody_whom_an_enforced_allow_lets_in() -> None:
    lab = Lab(SERVER, authorization("a", FROM_ALICE), authorization("b", dry_run=True))
    assert judge(lab, ALICE) == Verdict(True, lab.number("shop/a"))
    assert judge(lab, BOB) == Verdict(False, lab.number("shop/a"), lab.number("shop/b"))


def test_dry_run_deny_is_reported_also_when_an_enforced_one_refuses() -> None:
    lab = Lab(SERVER, authorization("a", FROM_ALICE, action=DENY))
    lab.put(authorization("b", FROM_ALICE, action=DENY, dry_run=True))
    assert judge(lab, ALICE) == Verdict(False, lab.number("shop/a"), lab.number("shop/b"))


def test_policies_select_by_scope() -> None:
    everyone = rule(security.Match(destination_ports=[80]))
    lab = Lab(SERVER, authorization("zoo", everyone, namespace="zoo", action=DENY))
    assert judge(lab, ALICE).allow
    selector = authorization("sel", everyone, scope=security.Scope.WORKLOAD_SELECTOR, action=DENY)
    lab.put(selector)
    assert judge(lab, ALICE).allow
    lab.put(workload("server", "10.0.0.1", node="node-a", authorization_policies=["shop/sel", "shop/not-there"]))
    assert judge(lab, ALICE) == Verdict(False, lab.number("shop/sel"))
    lab.put(authorization("sel", scope=security.Scope.WORKLOAD_SELECTOR, action=DENY))
    assert judge(lab, ALICE).allow
    root = authorization("all", everyone, namespace="root", scope=security.Scope.GLOBAL, action=DENY)
    lab.put(root)
    assert judge(lab, ALICE) == Verdict(False, lab.number("root/all"))


def test_removed_policy_no_longer_judges() -> None:
    lab = Lab(SERVER, authorization("p"))
    assert not judge(lab, ALICE).allow
    lab.remove("shop/p", type_url="type.googleapis.com/istio.security.Authorization")
    assert judge(lab, ALICE).allow
