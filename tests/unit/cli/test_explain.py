import json

import pytest
from click.testing import CliRunner

from cli import explain as module
from cli.reach import options
from cli.reach.base import ZTUNNEL_ADMIN, query
from tests.unit.cli.fake_reach import FakeReach

ALLOWED = {
    "source": "shop/a",
    "destination": "10.9.0.1:80",
    "path": "hbone",
    "reason": "ok",
    "because": ["a VIP", "HBONE"],
}
ALLOWED |= {
    "allowed": True,
    "endpoint": "workload shop/web",
    "identity": "spiffe://x",
    "policy": None,
    "policies": ["let in"],
}


@pytest.fixture
def reach(monkeypatch):
    fake = FakeReach()
    monkeypatch.setattr(options, "reach", lambda *_: fake)
    return fake


def run(reach, found, *more):
    reach.answers["a", ZTUNNEL_ADMIN, query("/explain", source="shop/a", destination="web.shop:80")] = found
    return CliRunner().invoke(module.explain, ["shop/a", "web.shop", *more])


def test_who_may_is_told_on_which_path_and_why(reach):
    done = run(reach, ALLOWED)
    assert done.exit_code == 0, done.output
    for word in ("allowed", "hbone", "node a", "workload shop/web", "spiffe://x", "a VIP", "let in"):
        assert word in done.stdout


def test_who_may_not_is_told_by_which_policy_and_the_status_says_so(reach):
    done = run(reach, ALLOWED | {"allowed": False, "policy": "shop/no"})
    assert done.exit_code == 1
    assert "refused by policy shop/no" in done.stdout
    assert json.loads(run(reach, ALLOWED | {"allowed": False}, "--json").stdout)["node"] == "a"


def test_a_path_that_is_refused_says_its_reason(reach):
    refused = {
        "source": "a",
        "destination": "b",
        "path": "refuse",
        "reason": "no_endpoint",
        "because": [],
        "allowed": False,
    }
    assert "refused (no_endpoint)" in run(reach, refused).stdout


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("web.shop", "web.shop:80"),
        ("web.shop:8080", "web.shop:8080"),
        ("10.0.0.1", "10.0.0.1:80"),
        ("fd00::1", "[fd00::1]:80"),
        ("[fd00::1]", "[fd00::1]:80"),
        ("[fd00::1]:8080", "[fd00::1]:8080"),
        ("shop/web", "shop/web:80"),
    ],
)
def test_a_port_is_added_where_there_is_none(given, asked):
    assert module.with_port(given) == asked


@pytest.mark.parametrize("destination", ["", "[::1", "[::1:80"])
def test_what_cannot_be_a_destination_is_wrong_usage(reach, destination):
    done = CliRunner().invoke(module.explain, ["shop/a", destination])
    assert done.exit_code == 2
    assert "neither a name nor an address" in done.stderr
