"""What is reached through a waypoint, and what happens when that is not there."""

import pytest

from mesh.reasons import Reason
from mesh.wire import workload_pb2 as wire
from tests.unit.ztunnel.decisions import (
    CLIENT,
    WEB,
    refused,
    route,
    to,
    web,
)
from tests.unit.ztunnel.mesh_builder import Lab, by_address, by_service, service, workload
from ztunnel.decide import Route, RouteKind

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
