"""What `/explain` answers: the decision for one connection, with every step that led to it."""

import pytest

from mesh.wire import authorization_pb2 as security
from tests.unit.ztunnel.mesh_builder import authorization, small_shop, workload
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


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        ("nobody", "10.0.1.1:80", "neither namespace/pod nor an address"),
        ("shop/nobody", "10.0.1.1:80", "not a workload"),
        ("shop/client", "10.0.1.1", "not host:port"),
        ("shop/client", "10.0.1.1:99999", "not host:port"),
        ("shop/client", "nothing.shop:80", "no service"),
    ],
)
def test_explain_says_what_is_wrong_with_a_question(source: str, destination: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        explain(small_shop().store, source, destination)
