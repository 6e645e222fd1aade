"""Every row of the outbound table, by the reference and by the engine alike."""

import pytest

from mesh.reasons import Reason
from mesh.wire import workload_pb2 as wire
from tests.unit.ztunnel.decisions import (
    CLIENT,
    LAST,
    WEB,
    refused,
    route,
    to,
    web,
)
from tests.unit.ztunnel.mesh_builder import Lab, service, workload
from ztunnel.decide import NOWHERE, Route, RouteKind


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
