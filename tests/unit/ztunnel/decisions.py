"""Decisions as tests ask for them: each by the reference, after checking that the engine decides the same."""

from mesh.reasons import Reason
from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from tests.unit.ztunnel.mesh_builder import Lab, authorization, ip, workload
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
