from lab.capture import asks_for_mesh, describe, is_decided

LABEL = "culvert.io/mesh"


def test_label_of_the_pod_wins():
    assert asks_for_mesh({}, {LABEL: "enabled"})
    assert not asks_for_mesh({LABEL: "disabled"}, {LABEL: "enabled"})
    assert asks_for_mesh({LABEL: "enabled"}, {})
    assert not asks_for_mesh({}, {})
    assert not asks_for_mesh({LABEL: "true"}, {})


def test_captured_and_refused_pods_are_waited_for_no_longer():
    assert is_decided({"captured": True, "state": "captured"})
    assert is_decided({"captured": False, "state": "refused"})
    assert not is_decided({"captured": False, "state": "failed"})
    assert not is_decided(None)


def test_reason_of_the_agent_is_shown():
    assert "no ztunnel" in describe({"state": "waiting", "reason": "no ztunnel"})
    assert "does not know" in describe(None)
