import json

import pytest
from click.testing import CliRunner

from cli.reach import options
from cli.reach.base import AGENT
from cli.status import lines, look, status
from tests.unit.cli.fake_reach import FakeReach, agent_status


def test_a_mesh_in_order_is_healthy_and_shows_its_pods():
    found = look(FakeReach())
    assert found["healthy"]
    text = "\n".join(lines(found))
    assert "shop/web-a" in text and "captured" in text


def test_where_nothing_runs_the_answer_is_what_to_do(monkeypatch):
    monkeypatch.setattr(options, "reach", lambda *_: FakeReach(nodes=(), controllers=()))
    done = CliRunner().invoke(status, [])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "`culvert install`" in done.stderr
    found = json.loads(CliRunner().invoke(status, ["--json"]).stdout)
    assert not found["healthy"] and "`culvert install`" in found["problem"]


def test_a_node_whose_agent_is_away_is_named():
    reach = FakeReach()
    del reach.answers["b", AGENT, "/status"]
    found = look(reach)
    assert not found["healthy"]
    assert "b does not answer" in "\n".join(lines(found))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"ztunnel": {"connected": 0, "ready": False, "problem": "no ztunnel is connected"}},
            "no ztunnel is connected",
        ),
        ({"kubernetes": {"cni": "no conflist in /etc/cni/net.d"}}, "no conflist"),
        (
            {"pods": [{"namespace": "n", "name": "p", "state": "refused", "reason": "listens on 15001"}]},
            "n/p: listens on",
        ),
        ({"programs": {"problem": "an older set is in use"}}, "an older set"),
    ],
)
def test_what_an_agent_complains_of_is_shown(changes, said):
    reach = FakeReach()
    reach.answers["a", AGENT, "/status"] = agent_status("a", **changes)
    found = look(reach)
    assert not found["healthy"]
    assert said in "\n".join(lines(found))


def test_a_captured_pod_that_wants_a_port_of_the_mesh_says_so_and_is_no_fault_of_the_mesh():
    reach = FakeReach()
    row = {
        "namespace": "shop",
        "name": "web",
        "state": "captured",
        "reason": "",
        "conflict": "was refused TCP port 15006",
    }
    reach.answers["a", AGENT, "/status"] = agent_status("a", pods=[row])
    found = look(reach)
    assert found["healthy"]
    assert [line.split("  ")[-1] for line in lines(found) if "shop/web " in line] == ["was refused TCP port 15006"]


def test_each_node_must_be_connected_to_one_controller_of_several():
    reach = FakeReach(controllers=("one", "two"))
    reach.answers["one", 0, "/debug/announced"] = {"nodes": {"a": True}}
    reach.answers["two", 0, "/debug/announced"] = {"nodes": {"b": True}}
    assert look(reach)["healthy"]
    reach.answers["two", 0, "/debug/announced"] = {"nodes": {}}
    assert "connected to no controller" in "\n".join(lines(look(reach)))
    reach.answers["two", 0, "/debug/announced"] = {"nodes": {"b": False}}
    assert "has not taken" in "\n".join(lines(look(reach)))


def test_a_node_by_itself_whose_controller_is_elsewhere_is_healthy_when_its_agent_says_so():
    reach = FakeReach(nodes=("a",), controllers=())
    assert not look(reach)["healthy"]
    reach.controllers_may_be_elsewhere = True
    found = look(reach)
    assert found["healthy"]
    assert lines(found)[0].startswith("NODE")
    away = {"connected": False, "problem": "the controller does not answer"}
    reach.answers["a", AGENT, "/status"] = agent_status("a", controller=away)
    assert not look(reach)["healthy"]


def test_without_a_controller_nothing_is_said_about_who_is_connected():
    reach = FakeReach()
    del reach.answers["controller", 0, "/debug/announced"]
    found = look(reach)
    assert not found["healthy"]
    assert "connected to no controller" not in "\n".join(lines(found))
