import json

import pytest
from click.testing import CliRunner

from cli import config as module
from cli.reach import options
from cli.reach.base import ZTUNNEL_ADMIN
from tests.unit.cli.fake_reach import FakeReach, config_dump


@pytest.fixture
def reach(monkeypatch):
    fake = FakeReach()
    monkeypatch.setattr(options, "reach", lambda *_: fake)
    return fake


def run(*words):
    return CliRunner().invoke(module.config, list(words))


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        ("workloads", "shop/web  10.1.0.2"),
        ("services", "web.shop.svc"),
        ("policies", "POLICY"),
        ("certificates", "2026-01-02T00:00:00Z"),
        ("connections", "spiffe://x"),
    ],
)
def test_what_all_nodes_have_is_one_row(reach, view, shown):
    done = run(view)
    assert done.exit_code == 0, done.output
    assert shown in done.stdout
    assert len(done.stdout.splitlines()) == (1 if view == "policies" else 2)
    assert view == "policies" or done.stdout.rstrip().endswith("all")


def test_what_differs_stands_out(reach):
    reach.answers["b", ZTUNNEL_ADMIN, "/config_dump"] = config_dump(workloads=[])
    assert run("workloads").stdout.splitlines()[1].endswith("  a")


def test_a_node_that_does_not_answer_is_said_and_the_others_are_shown(reach):
    del reach.answers["b", ZTUNNEL_ADMIN, "/config_dump"]
    done = run("services")
    assert done.exit_code == 0
    assert "node b: b does not answer" in done.stderr
    assert "web.shop.svc" in done.stdout


def test_a_policy_that_was_not_understood_is_shown_with_its_reason(reach):
    fault = {"name": "shop/odd", "reason": "unknown action 7", "inForce": "deny all"}
    reach.answers["a", ZTUNNEL_ADMIN, "/config_dump"] = config_dump(policiesNotUnderstood=[fault])
    assert "unknown action 7" in run("policies").stdout


def test_json_is_by_node(reach):
    assert set(json.loads(run("workloads", "--json").stdout)) == {"a", "b"}
    assert set(json.loads(run("workloads", "a", "--json").stdout)) == {"a"}


def test_a_node_that_is_none_is_answered_with_those_that_are(reach):
    done = run("workloads", "zzz")
    assert done.exit_code == 1
    assert "these have an agent: a, b" in done.stderr


def test_where_nothing_runs_the_answer_is_what_to_do(monkeypatch):
    monkeypatch.setattr(options, "reach", lambda *_: FakeReach(nodes=()))
    done = run("workloads")
    assert done.exit_code == 1
    assert "`culvert install`" in done.stderr
