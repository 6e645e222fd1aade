from lab.capture import describe, is_decided, is_let_go


def test_pod_is_let_go_when_its_new_connections_pass_by_the_mesh():
    assert is_let_go(None)
    assert is_let_go({"captured": False, "state": "draining"})
    assert is_let_go({"captured": False, "state": "refused"})
    assert not is_let_go({"captured": True, "state": "waiting"})
    assert not is_let_go({"captured": False, "state": "failed"})


def test_captured_and_refused_pods_are_waited_for_no_longer():
    assert is_decided({"captured": True, "state": "captured"})
    assert is_decided({"captured": False, "state": "refused"})
    assert not is_decided({"captured": False, "state": "failed"})
    assert not is_decided(None)


def test_reason_of_the_agent_is_shown():
    assert "no ztunnel" in describe({"state": "waiting", "reason": "no ztunnel"})
    assert "does not know" in describe(None)
