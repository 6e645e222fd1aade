import os
from pathlib import Path

import pytest

from daemonset.lock import AnotherAgent, only_agent, running_agent


def test_the_second_agent_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with (
        only_agent(tmp_path, patience_s=0),
        pytest.raises(AnotherAgent, match=f"pid {os.getpid()}"),
        only_agent(tmp_path, patience_s=0),
    ):
        pytest.fail("two agents hold the lock")


def test_the_holder_is_known_while_it_runs_only(tmp_path: Path) -> None:
    assert running_agent(tmp_path) == ""
    with only_agent(tmp_path, patience_s=0):
        assert running_agent(tmp_path) == str(os.getpid())
    assert running_agent(tmp_path) == ""
    with only_agent(tmp_path, patience_s=0):
        assert running_agent(tmp_path) == str(os.getpid())
