"""What `/explain` answers: the decision for one connection, with every step that led to it."""

import pytest

from tests.unit.ztunnel.mesh_builder import small_shop
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
