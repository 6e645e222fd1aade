from cli.checks.after import problems_of
from tests.unit.cli.fake_reach import agent_status


def test_an_agent_in_order_has_no_problems():
    assert problems_of(agent_status("a")) == []


def test_a_pod_on_the_nodes_network_is_no_problem_of_its_node():
    pod = {"namespace": "n", "name": "p", "state": "refused", "refused": "host_network", "reason": "never captured"}
    assert problems_of(agent_status("a", pods=[pod])) == []


def test_every_part_may_complain():
    pods = [
        {"namespace": "n", "name": name, "state": name, "reason": "why"} for name in ("captured", "refused", "failed")
    ]
    found = problems_of(
        agent_status("a", waiting_for="programs", kubernetes={"api_server": "away", "cni": ""}, pods=pods)
    )
    assert found == ["programs", "away", "n/refused: why", "n/failed: why"]
