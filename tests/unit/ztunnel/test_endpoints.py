"""Which endpoints a node uses: health, ports, networks and nearness."""

from typing import Any

import pytest

from mesh.identity import Identity
from tests.unit.ztunnel.mesh_builder import ip
from ztunnel.endpoints import ANY_PORT, Endpoint, Here, nearness, prepare
from ztunnel.model import Families, Locality, Mode, Scope, Service, Workload

HERE = Here("node-a", "net", "c1", Locality("r1", "z1", "s1"))
NEAR_FIRST = (Scope.NETWORK, Scope.REGION, Scope.ZONE, Scope.NODE)


def member(number: int, **more: Any) -> tuple[int, Workload]:
    more.setdefault("addresses", (ip(f"10.0.0.{number}"),))
    more.setdefault("network", "net")
    return number, Workload(f"u{number}", "w", "shop", Identity("td", "shop", "sa"), **more)


def web(**more: Any) -> Service:
    more.setdefault("ports", {80: 8080})
    return Service("web", "shop", **more)


def used(service: Service, *members: tuple[int, Workload], port: int = 80) -> list[int]:
    return [endpoint.workload for endpoint in prepare(service, members, HERE)[port] if endpoint.weight]


def test_order_is_by_number_whatever_the_order_given() -> None:
    assert used(web(), member(3), member(1), member(2)) == [1, 2, 3]


def test_members_without_health_capacity_or_address_stay_members_without_weight() -> None:
    groups = prepare(
        web(), [member(1, healthy=False), member(2, capacity=0), member(3, addresses=()), member(4, capacity=9)], HERE
    )
    assert groups[80] == (Endpoint(4, 80, 8080, 9),)
    assert groups[ANY_PORT] == tuple(Endpoint(n, 0, 0, 9 if n == 4 else 0) for n in (1, 2, 3, 4))


def test_port_without_a_target_is_there_and_has_no_endpoints() -> None:
    assert prepare(web(ports={80: 0}), [member(1)], HERE)[80] == ()


def test_own_target_counts_for_its_service_only() -> None:
    own = member(1, services={"shop/web": {80: 9090}, "shop/other": {80: 7070}})
    assert prepare(web(), [own, member(2)], HERE)[80] == (Endpoint(1, 80, 9090, 1), Endpoint(2, 80, 8080, 1))


def test_families() -> None:
    six = member(2, addresses=(ip("fd00::2"),))
    assert used(web(families=Families.IPV6), member(1), six) == [2]
    assert used(web(families=Families.IPV4), member(1), six) == [1]
    assert used(web(families=Families.DUAL), member(1), six) == [1, 2]


def test_other_networks_count_only_when_there_is_nothing_here() -> None:
    far = member(1, network="far")
    assert used(web(), far, member(2)) == [2]
    assert used(web(), far) == [1]


@pytest.mark.parametrize(
    ("facts", "rank"),
    [
        ({"network": "far"}, 0),
        ({"locality": Locality("r2", "z1")}, 1),
        ({"locality": Locality("r1", "z2"), "node": "node-a"}, 2),
        ({"locality": Locality("r1", "z1")}, 3),
        ({"locality": Locality("r1", "z1"), "node": "node-a"}, 4),
    ],
)
def test_nearness_counts_to_the_first_preference_that_does_not_hold(facts: dict[str, Any], rank: int) -> None:
    assert nearness(member(1, **facts)[1], NEAR_FIRST, HERE) == rank


@pytest.mark.parametrize("scope", list(Scope))
def test_every_scope_can_hold_and_not(scope: Scope) -> None:
    same = member(1, locality=HERE.locality, node="node-a", cluster_id="c1")[1]
    other = member(1, network="x", cluster_id="x")[1]
    assert (nearness(same, (scope,), HERE), nearness(other, (scope,), HERE)) == (1, 0)


def test_failover_uses_the_nearest_rank_that_has_a_usable_endpoint() -> None:
    service = web(mode=Mode.FAILOVER, preferences=NEAR_FIRST)
    near = member(1, locality=HERE.locality, node="node-a")
    zone = member(2, locality=HERE.locality)
    region = member(3, locality=Locality("r1", "z9"))
    assert used(service, near, zone, region) == [1]
    assert used(service, member(1, locality=HERE.locality, node="node-a", healthy=False), zone, region) == [2]
    assert used(service, region) == [3]
    assert used(service, near, zone, port=ANY_PORT) == [1]


def test_failover_ranks_among_those_that_have_the_port() -> None:
    service = web(mode=Mode.FAILOVER, preferences=NEAR_FIRST, ports={80: 0})
    near = member(1, locality=HERE.locality, node="node-a")
    far = member(2, services={"shop/web": {80: 8080}})
    assert used(service, near, far) == [2]


def test_strict_uses_only_what_holds_all_preferences() -> None:
    service = web(mode=Mode.STRICT, preferences=(Scope.NODE,))
    assert used(service, member(1, node="node-a"), member(2, node="node-b")) == [1]
    assert used(service, member(2, node="node-b")) == []


def test_standard_ignores_preferences() -> None:
    assert used(web(preferences=NEAR_FIRST), member(1, node="node-a"), member(2)) == [1, 2]
