"""Which of several services, endpoints and addresses is taken."""

import pytest

from mesh.wire import workload_pb2 as wire
from tests.unit.ztunnel.decisions import (
    CLIENT,
    LAST,
    route,
    to,
    web,
)
from tests.unit.ztunnel.mesh_builder import Lab, service, workload
from ztunnel.decide import Route, RouteKind


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
