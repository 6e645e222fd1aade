from dataclasses import replace

from mesh.reasons import Reason
from tests.support.mesh import address, event, workload
from ztunnel.telemetry.labels import Edge
from ztunnel.telemetry.recent import RecentFlows

WEB = workload("web-1", service_account="web")
EDGE = Edge(
    inbound=True,
    source=None,
    destination=WEB,
    service=None,
    source_principal="",
    destination_principal=str(WEB.identity),
    mutual_tls=True,
)


def flows(*events, limit=10, edge=EDGE, live=()):
    recent = RecentFlows({7: "shop/only-web"}.get, limit)
    for one in events:
        recent.ended(one, edge)
    return recent.view([(one, edge) for one in live])


def test_connections_of_one_peer_to_one_port_are_one_flow() -> None:
    found = flows(event(), event(), event(upstream=address("10.1.1.1", 9)))
    assert sorted(one["connections"] for one in found) == [1, 2]
    assert {one["name"] for one in found} == {"web-1"}


def test_who_was_refused_by_which_policy_is_kept() -> None:
    (found,) = flows(event(reason=Reason.POLICY_DENIED, policy=7))
    assert (found["allowed"], found["policy"]) == (False, "shop/only-web")


def test_the_latest_answer_counts() -> None:
    (found,) = flows(event(reason=Reason.POLICY_DENIED, policy=7), event())
    assert (found["allowed"], found["policy"]) == (True, None)


def test_the_longest_unused_gives_way() -> None:
    events = [event(upstream=address("10.1.1.1", port)) for port in (1, 2, 1, 3)]
    assert [one["port"] for one in flows(*events, limit=2)] == [1, 3]


def test_open_connections_are_shown_and_not_counted_twice() -> None:
    recent = RecentFlows({}.get)
    assert len(recent.view([(event(), EDGE)])) == 1
    assert recent.view([]) == []


def test_what_goes_out_is_judged_elsewhere() -> None:
    assert flows(event(), edge=replace(EDGE, inbound=False)) == []
    assert flows(event(), edge=replace(EDGE, destination=None)) == []
