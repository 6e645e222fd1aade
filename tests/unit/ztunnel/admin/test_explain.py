"""What `/explain` answers: the decision for one connection, with every step that led to it."""

from typing import Any

import pytest

from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from tests.unit.ztunnel.mesh_builder import Lab, authorization, service, small_shop, workload
from ztunnel.admin.explain import explain


def test_explain_names_every_step_of_a_route() -> None:
    found = explain(small_shop().store, "shop/client", "web.shop:80")
    assert found["path"] == "hbone"
    assert found["allowed"] is True
    assert found["endpoint"] == "workload shop/web-1"
    text = " ".join(found["because"])
    assert "VIP of service shop/web.shop" in text
    assert "spiffe://cluster.local/ns/shop/sa/" in text


def test_explain_names_the_policy_that_refuses() -> None:
    found = explain(small_shop().store, "10.0.0.1", "10.0.1.1:9090")
    assert found["allowed"] is False
    assert found["policy"] == "shop/no-9090"


def test_explain_says_that_a_policy_could_not_be_understood() -> None:
    stage = small_shop()
    stage.put(workload("web-1", "10.0.1.1", authorization_policies=["shop/odd"]))
    stage.put(authorization("odd", scope=security.Scope.WORKLOAD_SELECTOR, action=2))
    found = explain(stage.store, "10.0.0.1", "10.0.1.1:80")
    assert (found["allowed"], found["policy"]) == (False, "shop/odd")
    assert "policy shop/odd, which could not be understood (action 2 is not supported), refuses" in found["policies"][0]


def test_explain_says_that_a_policys_newest_version_is_not_in_force() -> None:
    stage = small_shop()
    stage.put(authorization("no-9090", action=2))
    found = explain(stage.store, "10.0.0.1", "10.0.1.1:9090")
    assert (found["allowed"], found["policy"]) == (False, "shop/no-9090")
    assert "newest version could not be understood: action 2 is not supported" in found["policies"][0]


def test_explain_says_why_a_route_is_refused() -> None:
    found = explain(small_shop().store, "shop/client", "10.96.0.1:81")
    assert found["allowed"] is False
    assert found["reason"] == "unknown_port"


def plain(name: str, address: str, **more: Any) -> wire.Workload:
    return workload(name, address, namespace="legacy", tunnel_protocol=wire.TunnelProtocol.NONE, **more)


def test_a_source_that_is_not_captured_shows_no_identity_to_policies() -> None:
    stage = small_shop()
    stage.put(plain("outside", "10.0.0.9"))
    client = security.Match(namespaces=[security.StringMatch(exact="legacy")])
    stage.put(authorization("only-legacy", security.Rule(clauses=[security.Clause(matches=[client])])))
    for destination in ("web.shop:80", "shop/web-1:8080"):
        found = explain(stage.store, "legacy/outside", destination)
        assert (found["path"], found["identity"]) == ("plain", None)
        assert (found["allowed"], found["policy"]) == (False, "shop/only-legacy")
        assert found["because"][0] == "workload legacy/outside is not captured: what it dials shows no identity"
        assert "HBONE" not in " ".join(found["because"])


def test_where_nothing_is_captured_no_policy_holds() -> None:
    stage = small_shop()
    stage.put(plain("server", "10.0.1.9"))
    everything = security.Rule(clauses=[security.Clause(matches=[security.Match(destination_ports=[9090])])])
    stage.put(authorization("none", everything, namespace="legacy", action=security.Action.DENY))
    found = explain(stage.store, "shop/client", "legacy/server:9090")
    assert (found["path"], found["allowed"], found["policy"]) == ("plain", True, None)
    assert found["policies"] == ["workload legacy/server is not captured: no policy holds there"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "istio_converted_static_strict",
            "this is STRICT of the PeerAuthentication of the pod, else of namespace shop",
        ),
        ("converted_peer_authentication_p", "this is PeerAuthentication shop/p"),
    ],
)
def test_a_policy_that_a_peer_authentication_stands_for_says_so(name: str, says: str) -> None:
    stage = small_shop()
    stage.put(plain("outside", "10.0.0.9"))
    stage.put(workload("web-1", "10.0.1.1", authorization_policies=[f"shop/{name}"]))
    everybody = security.Rule(clauses=[security.Clause(matches=[security.Match(destination_ports=[80])])])
    stage.put(authorization(name, everybody, scope=security.Scope.WORKLOAD_SELECTOR, action=security.Action.DENY))
    found = explain(stage.store, "legacy/outside", "shop/web-1:80")
    assert (found["allowed"], found["policy"]) == (False, f"shop/{name}")
    assert found["policies"][-1].startswith(says)


def test_a_port_that_a_service_lacks_is_answered_with_those_that_it_has() -> None:
    stage = small_shop()
    found = explain(stage.store, "shop/client", "web.shop:81")
    assert found["because"][-1] == "service shop/web.shop has no port 81, only 80"
    stage.put(service("web", "10.96.0.1", ports=dict.fromkeys(range(1, 13), 80)))
    found = explain(stage.store, "shop/client", "web.shop:81")
    assert found["because"][-1].endswith("only 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more")


def test_a_pod_that_dials_itself_stays_in_itself() -> None:
    for target in ("shop/client:9090", "127.0.0.1:9090", "[::1]:9090"):
        found = explain(small_shop().store, "shop/client", target)
        assert (found["path"], found["allowed"]) == ("local", True)
        assert "stays in the pod" in found["because"][0]


def test_the_node_itself_reaches_its_pods_past_policies() -> None:
    stage = small_shop()
    stage.put(plain("agent", "10.9.0.1", node="node-b", network_mode=wire.NetworkMode.HOST_NETWORK))
    found = explain(stage.store, "legacy/agent", "shop/web-1:9090")
    assert (found["path"], found["allowed"], found["identity"]) == ("plain", True, None)
    assert "as its probes do" in found["policies"][0]
    stage.put(plain("agent", "10.9.0.1", node="node-a", network_mode=wire.NetworkMode.HOST_NETWORK))
    assert not explain(stage.store, "legacy/agent", "shop/web-1:9090")["allowed"]


@pytest.mark.parametrize("name", ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"])
def test_a_service_is_known_by_each_name_that_its_callers_resolve(name: str) -> None:
    message = service("web", "10.96.0.1", ports={80: 8080})
    message.hostname = "web.shop.svc.cluster.local"
    stage = Lab(
        workload("client", "10.0.0.1", node="node-a"),
        workload("web-1", "10.0.1.1", services={"shop/web.shop.svc.cluster.local": {80: 8080}}),
        message,
    )
    assert explain(stage.store, "shop/client", f"{name}:80")["destination"] == "10.96.0.1:80"
    with pytest.raises(ValueError, match="no service"):
        explain(stage.store, "shop/client", "we:80")


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        ("nobody", "10.0.1.1:80", "neither namespace/pod nor an address"),
        ("shop/nobody", "10.0.1.1:80", "not a workload"),
        ("shop/client", "10.0.1.1", "not host:port"),
        ("shop/client", "10.0.1.1:99999", "'99999' is not a port"),
        ("shop/client", "10.0.1.1:http", "'http' is not a port"),
        ("shop/client", ":80", "not host:port"),
        ("shop/client", "nothing.shop:80", "no service"),
        ("shop/client", "wbe.shop:80", "near is web.shop"),
        ("shop/client", "shop/wbe:80", "destination 'shop/wbe' is not a workload"),
    ],
)
def test_explain_says_what_is_wrong_with_a_question(source: str, destination: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        explain(small_shop().store, source, destination)
