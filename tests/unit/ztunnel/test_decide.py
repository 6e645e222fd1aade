"""Every row of the outbound table and every edge of policy evaluation, by the reference and by the engine alike."""

import pytest

from mesh.reasons import Reason
from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from tests.unit.ztunnel.mesh_builder import (
    Lab,
    authorization,
    by_address,
    by_service,
    ip,
    service,
    workload,
)
from ztunnel.decide import NOWHERE, Destination, Peer, Route, RouteKind, Verdict, inbound, outbound

WEB = "shop/web.shop"
CLIENT = workload("client", "10.0.0.2", node="node-a")
LAST = 2**64 - 1


def to(address: str, port: int) -> Destination:
    return Destination(ip(address), port)


def route(lab: Lab, address: str, port: int = 80, randomness: int = 0, source: str = "client") -> Route:
    """The reference's route, after checking that the engine finds the same."""
    destination = to(address, port)
    expected = outbound(lab.store, lab.number(source), destination, randomness)
    assert lab.engine_route(lab.number(source), destination, randomness) == expected
    assert expected.trail
    return expected


def refused(lab: Lab, *args: object, **more: object) -> Reason:
    found = route(lab, *args, **more)  # type: ignore[arg-type]
    assert found.kind is RouteKind.REFUSE
    assert (found.dial, found.authority) == (NOWHERE, NOWHERE)
    return found.reason


def web(name: str, *addresses: str, **more: object) -> wire.Workload:
    return workload(name, *addresses, services={WEB: {80: 8080}}, **more)  # type: ignore[arg-type]


# --- rows of the table ------------------------------------------------------------------------------------------


def test_unknown_address_passes_through_in_plain() -> None:
    lab = Lab(CLIENT)
    assert route(lab, "192.0.2.1", 443) == Route(RouteKind.PLAIN, dial=to("192.0.2.1", 443))


def test_unknown_source_is_refused() -> None:
    assert refused(Lab(CLIENT), "192.0.2.1", source="nobody") is Reason.UNKNOWN_SOURCE


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_loopback_mesh_port_is_refused(address: str, port: int) -> None:
    assert refused(Lab(CLIENT), address, port) is Reason.SELF_CALL


def test_other_loopback_port_passes() -> None:
    assert route(Lab(CLIENT), "127.0.0.1", 15000).kind is RouteKind.PLAIN


def test_vip_reaches_hbone_endpoint_at_its_target_port() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1"), web("web-1", "10.0.1.1"))
    assert route(lab, "10.96.0.1") == Route(
        RouteKind.HBONE,
        workload=lab.number("web-1"),
        service=lab.number(WEB),
        next_hop=lab.number("web-1"),
        next_hop_service=lab.number(WEB),
        dial=to("10.0.1.1", 15008),
        authority=to("10.0.1.1", 8080),
    )


def test_vip_reaches_plain_endpoint_at_its_target_port() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1"), web("web-1", "10.0.1.1", tunnel_protocol=0))
    found = route(lab, "10.96.0.1")
    assert (found.kind, found.dial, found.authority) == (RouteKind.PLAIN, to("10.0.1.1", 8080), NOWHERE)
    assert found.next_hop == 0


def test_workload_address_reaches_the_workload_at_the_dialled_port() -> None:
    lab = Lab(CLIENT, web("web-1", "10.0.1.1", "fd00::1"))
    found = route(lab, "fd00::1", 9999)
    assert (found.dial, found.authority) == (to("fd00::1", 15008), to("fd00::1", 9999))
    assert (found.service, found.next_hop_service) == (0, 0)


def test_unknown_port_of_a_service_is_refused() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1"), web("web-1", "10.0.1.1"))
    assert refused(lab, "10.96.0.1", 81) is Reason.UNKNOWN_PORT
    assert refused(lab, "10.96.0.1", 0) is Reason.UNKNOWN_PORT


def test_service_without_endpoint_is_refused() -> None:
    assert refused(Lab(CLIENT, service("web", "10.96.0.1")), "10.96.0.1") is Reason.NO_HEALTHY_UPSTREAM


def test_unhealthy_endpoint_is_not_used_unless_the_service_allows_all() -> None:
    sick = web("web-1", "10.0.1.1", status=wire.WorkloadStatus.UNHEALTHY)
    lab = Lab(CLIENT, service("web", "10.96.0.1"), sick)
    assert refused(lab, "10.96.0.1") is Reason.NO_HEALTHY_UPSTREAM
    allow_all = wire.LoadBalancing(health_policy=wire.LoadBalancing.HealthPolicy.ALLOW_ALL)
    lab.put(service("web", "10.96.0.1", load_balancing=allow_all))
    assert route(lab, "10.96.0.1").kind is RouteKind.HBONE


def test_endpoint_without_the_port_is_not_used() -> None:
    lab = Lab(
        CLIENT,
        service("web", "10.96.0.1", ports={80: 0}),
        workload("web-1", "10.0.1.1", services={WEB: {81: 8080}}),
    )
    assert refused(lab, "10.96.0.1") is Reason.NO_HEALTHY_UPSTREAM


def test_endpoints_own_target_port_wins() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1"), workload("web-1", "10.0.1.1", services={WEB: {80: 9090}}))
    assert route(lab, "10.96.0.1").authority == to("10.0.1.1", 9090)


def test_passthrough_service_keeps_the_destination() -> None:
    passthrough = wire.LoadBalancing(mode=wire.LoadBalancing.Mode.PASSTHROUGH)
    lab = Lab(CLIENT, service("web", "10.96.0.1", load_balancing=passthrough), web("web-1", "10.0.1.1"))
    found = route(lab, "10.96.0.1", 4242)
    assert found == Route(RouteKind.PLAIN, service=lab.number(WEB), dial=to("10.96.0.1", 4242))


def test_endpoint_of_another_network_is_refused_only_when_there_is_no_other() -> None:
    far = web("far", "10.0.1.1", network="other")
    lab = Lab(CLIENT, service("web", "10.96.0.1"), far)
    assert refused(lab, "10.96.0.1") is Reason.UNSUPPORTED_NETWORK
    lab.put(web("near", "10.0.1.2"))
    assert {route(lab, "10.96.0.1", randomness=r).workload for r in (0, LAST)} == {lab.number("near")}


def test_address_of_another_network_is_nobodys() -> None:
    lab = Lab(CLIENT, web("far", "10.0.1.1", network="other"))
    assert route(lab, "10.0.1.1").kind is RouteKind.PLAIN
    assert lab.engine_owner("10.0.1.1") == 0


# --- waypoints --------------------------------------------------------------------------------------------------

GATE = "shop/gate.shop"


def gate(name: str = "gate-1", address: str = "10.0.9.1", **more: object) -> wire.Workload:
    return workload(name, address, services={GATE: {15008: 15008}}, **more)  # type: ignore[arg-type]


def behind_waypoint() -> Lab:
    return Lab(
        CLIENT,
        service("web", "10.96.0.1", waypoint=by_service(GATE)),
        service("gate", "10.96.0.9", ports={15008: 15008}),
        web("web-1", "10.0.1.1", waypoint=by_service(GATE)),
        gate(),
    )


def test_service_with_waypoint_is_reached_through_it() -> None:
    lab = behind_waypoint()
    assert route(lab, "10.96.0.1", 81) == Route(
        RouteKind.HBONE,
        service=lab.number(WEB),
        next_hop=lab.number("gate-1"),
        next_hop_service=lab.number(GATE),
        dial=to("10.0.9.1", 15008),
        authority=to("10.96.0.1", 81),
    )


def test_workload_with_waypoint_is_reached_through_it() -> None:
    lab = behind_waypoint()
    found = route(lab, "10.0.1.1", 8080)
    assert (found.workload, found.service) == (lab.number("web-1"), 0)
    assert (found.next_hop, found.dial) == (lab.number("gate-1"), to("10.0.9.1", 15008))
    assert found.authority == to("10.0.1.1", 8080)


@pytest.mark.parametrize(("address", "port"), [("10.96.0.1", 80), ("10.0.1.1", 8080)])
def test_the_waypoint_itself_is_not_sent_back(address: str, port: int) -> None:
    lab = behind_waypoint()
    found = route(lab, address, port, source="gate-1")
    assert (found.next_hop, found.authority) == (lab.number("web-1"), to("10.0.1.1", 8080))


def test_a_waypoint_that_is_not_ready_is_not_sent_to_another() -> None:
    lab = behind_waypoint()
    lab.put(gate("gate-2", "10.0.9.2", status=wire.WorkloadStatus.UNHEALTHY))
    assert route(lab, "10.96.0.1", source="gate-2").next_hop == lab.number("web-1")


def test_waypoint_service_without_a_ready_member_refuses() -> None:
    lab = behind_waypoint()
    lab.put(gate(status=wire.WorkloadStatus.UNHEALTHY))
    assert refused(lab, "10.96.0.1") is Reason.UNKNOWN_WAYPOINT


@pytest.mark.parametrize("waypoint", [by_service("shop/none.shop"), by_address("10.0.9.99")])
def test_waypoint_that_cannot_be_found_refuses(waypoint: wire.GatewayAddress) -> None:
    lab = Lab(
        CLIENT, service("web", "10.96.0.1", waypoint=waypoint), web("web-1", "10.0.1.1", waypoint=waypoint), gate()
    )
    assert refused(lab, "10.96.0.1") is Reason.UNKNOWN_WAYPOINT
    assert refused(lab, "10.0.1.1") is Reason.UNKNOWN_WAYPOINT


def test_waypoint_that_appears_later_is_used_and_refuses_again_when_gone() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1", waypoint=by_address("10.0.9.1", port=15443)))
    assert refused(lab, "10.96.0.1") is Reason.UNKNOWN_WAYPOINT
    lab.put(gate())
    assert route(lab, "10.96.0.1").dial == to("10.0.9.1", 15443)
    assert route(lab, "10.96.0.1").next_hop_service == 0
    lab.remove("Kubernetes//Pod/shop/gate-1")
    assert refused(lab, "10.96.0.1") is Reason.UNKNOWN_WAYPOINT


def test_waypoint_by_the_vip_of_its_service() -> None:
    lab = behind_waypoint()
    lab.put(service("web", "10.96.0.1", waypoint=by_address("10.96.0.9")))
    found = route(lab, "10.96.0.1")
    assert (found.next_hop, found.next_hop_service) == (lab.number("gate-1"), lab.number(GATE))


def test_waypoint_on_another_network_is_refused() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1", waypoint=by_address("10.0.9.1", network="other")))
    lab.put(gate(network="other"))
    assert refused(lab, "10.96.0.1") is Reason.UNSUPPORTED_NETWORK


def test_weighted_waypoints_share_by_weight() -> None:
    def weighted(target: str, weight: int) -> wire.WeightedWaypoint:
        return wire.WeightedWaypoint(destination=by_address(target), weight=weight)

    shares = [weighted("10.0.9.1", 1), weighted("10.0.9.2", 3), weighted("10.0.9.3", 0)]
    lab = Lab(CLIENT, service("web", "10.96.0.1", weighted_waypoints=shares))
    lab.put(gate(), gate("gate-2", "10.0.9.2"), gate("gate-3", "10.0.9.3"))
    quarters = [route(lab, "10.96.0.1", randomness=i << 30).next_hop for i in range(4)]
    assert quarters == [lab.number("gate-1")] + [lab.number("gate-2")] * 3


def test_address_that_is_a_workloads_too_does_not_take_the_services_waypoint() -> None:
    lab = behind_waypoint()
    lab.put(workload("odd", "10.96.0.1"))
    assert route(lab, "10.96.0.1").next_hop == lab.number("web-1")


# --- which service, which endpoint, which address ---------------------------------------------------------------


def test_endpoints_share_by_capacity() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1"))
    lab.put(web("web-1", "10.0.1.1"), web("web-2", "10.0.1.2", capacity={"value": 3}))
    lab.put(web("web-0", "10.0.1.3", capacity={"value": 0}))
    quarters = [route(lab, "10.96.0.1", randomness=i << 62).workload for i in range(4)]
    assert quarters == [lab.number("web-1")] + [lab.number("web-2")] * 3
    assert route(lab, "10.96.0.1", randomness=LAST).workload == lab.number("web-2")


def test_capacities_beyond_32_bits_together() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1"))
    lab.put(*(web(f"web-{i}", f"10.0.1.{i}", capacity={"value": 2**32 - 1}) for i in range(1, 5)))
    assert len({route(lab, "10.96.0.1", randomness=i << 62).workload for i in range(4)}) == 4


@pytest.mark.parametrize(
    ("others", "winner"),
    [
        ([service("b", "10.96.0.1", namespace="other", canonical=True), service("a", "10.96.0.1")], "shop/a.shop"),
        ([service("b", "10.96.0.1", canonical=True), service("a", "10.96.0.1")], "shop/b.shop"),
        ([service("b", "10.96.0.1"), service("a", "10.96.0.1")], "shop/a.shop"),
        (
            [
                service("b", "10.96.0.1", namespace="other", canonical=True, visibility=1),
                service("a", "10.96.0.1", namespace="zoo"),
            ],
            "zoo/a.zoo",
        ),
        ([service("b", "10.96.0.0/16"), service("a", "10.96.0.1", namespace="other")], "other/a.other"),
        ([service("b", "10.96.0.0/16", canonical=True), service("a", "10.96.0.0/24")], "shop/a.shop"),
        ([service("b", "10.0.0.0/8"), service("a", "10.96.0.0/24", namespace="other")], "shop/b.shop"),
        ([service("b", "net2=10.96.0.1"), service("a", "0.0.0.0/0")], "shop/a.shop"),
    ],
)
def test_one_of_several_services_on_a_vip_wins(others: list[wire.Service], winner: str) -> None:
    lab = Lab(CLIENT, *others)
    assert route(lab, "10.96.0.1").service == lab.number(winner)


def test_service_seen_only_from_its_namespace_is_not_there_for_others() -> None:
    lab = Lab(CLIENT, service("b", "10.96.0.1", namespace="other", visibility=1))
    assert route(lab, "10.96.0.1") == Route(RouteKind.PLAIN, dial=to("10.96.0.1", 80))


def test_range_of_ipv6_holds_no_ipv4() -> None:
    lab = Lab(CLIENT, service("a", "::/0"))
    assert route(lab, "10.96.0.1").service == 0
    assert route(lab, "fd00::1").service == lab.number("shop/a.shop")


def test_dual_stack_endpoint_is_dialled_in_the_family_of_the_vip() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1", "fd96::1"), web("web-1", "10.0.1.1", "fd00::1"))
    assert route(lab, "10.96.0.1").dial == to("10.0.1.1", 15008)
    assert route(lab, "fd96::1").dial == to("fd00::1", 15008)


def test_other_family_is_dialled_when_there_is_no_choice() -> None:
    lab = Lab(CLIENT, service("web", "fd96::1"), web("web-1", "10.0.1.1"))
    assert route(lab, "fd96::1").dial == to("10.0.1.1", 15008)


def test_family_of_the_service_wins() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1", ip_families=wire.IPFamilies.IPV6_ONLY))
    lab.put(web("web-1", "10.0.1.1", "fd00::1"), web("web-2", "10.0.1.2"))
    assert {route(lab, "10.96.0.1", randomness=r).dial for r in (0, LAST)} == {to("fd00::1", 15008)}


def test_pod_wins_over_other_workloads_on_one_address_then_hbone_then_the_younger() -> None:
    entry = workload("entry", "10.0.1.1", uid="Kubernetes/networking.istio.io/WorkloadEntry/shop/entry")
    lab = Lab(CLIENT, workload("plain", "10.0.1.1", tunnel_protocol=0), entry)
    assert route(lab, "10.0.1.1").workload == lab.number("plain")
    lab.put(workload("first", "10.0.1.1"), workload("late", "10.0.1.1", tunnel_protocol=0))
    assert route(lab, "10.0.1.1").workload == lab.number("first")
    lab.put(workload("second", "10.0.1.1"))
    assert route(lab, "10.0.1.1").workload == lab.number("second") == lab.engine_owner("10.0.1.1")


def test_host_network_workload_is_not_found_by_address_but_serves() -> None:
    lab = Lab(CLIENT, service("web", "10.96.0.1"))
    lab.put(web("web-1", "10.0.1.1", network_mode=wire.NetworkMode.HOST_NETWORK, tunnel_protocol=0))
    assert route(lab, "10.0.1.1").workload == 0
    assert route(lab, "10.96.0.1").dial == to("10.0.1.1", 8080)


# --- judging ----------------------------------------------------------------------------------------------------

SERVER = workload("server", "10.0.0.1", node="node-a")
ALICE = Peer("spiffe://cluster.local/ns/shop/sa/alice", ip("10.0.0.7"))
BOB = Peer("spiffe://cluster.local/ns/shop/sa/bob", ip("10.0.0.8"))
NOBODY = Peer(None, ip("10.0.0.7"))
AT = to("10.0.0.1", 80)


def exact(value: str) -> security.StringMatch:
    return security.StringMatch(exact=value)


def presence() -> security.StringMatch:
    match = security.StringMatch()
    match.presence.SetInParent()
    return match


def rule(*matches: security.Match) -> security.Rule:
    """One clause that holds the matches."""
    return security.Rule(clauses=[security.Clause(matches=matches)])


FROM_ALICE = rule(security.Match(principals=[exact("cluster.local/ns/shop/sa/alice")]))
DENY = security.Action.DENY


def judge(lab: Lab, peer: Peer, destination: Destination = AT) -> Verdict:
    """The reference's verdict, after checking that the engine says the same."""
    number = lab.number("server")
    expected = inbound(lab.store, number, peer, destination)
    assert lab.engine_verdict(number, peer, destination) == expected
    assert expected.trail
    return expected


def matches(match: security.Match, peer: Peer, destination: Destination = AT) -> bool:
    return rule_matches(rule(match), peer, destination)


def rule_matches(one: security.Rule, peer: Peer, destination: Destination = AT) -> bool:
    return not judge(Lab(SERVER, authorization("p", one, action=DENY)), peer, destination).allow


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
