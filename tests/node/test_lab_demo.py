"""The demo as a user runs it: two nodes, the whole mesh, unmodified programs; and an interrupted one."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.node.lab_stage import culvert, left_behind, start

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces and loads programs: needs root"),
    pytest.mark.usefixtures("alone"),
]


def test_every_claim_holds_within_a_minute_and_nothing_is_left():
    done = culvert("demo", "--json", timeout=100)
    report = json.loads(done.stdout)
    failed = [claim for group in report["groups"] for claim in group["claims"] if not claim["passed"]]
    assert failed == []
    assert done.returncode == 0
    assert report["seconds"] < 60
    assert left_behind("demo-") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(number):
    process = start("demo", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    own = f"demo-{process.pid}"
    deadline = time.monotonic() + 20
    while not list(Path("/run/netns").glob(f"cv-{own}-node-1-shop-*")):
        assert time.monotonic() < deadline, "the demo does not begin"
        time.sleep(0.05)
    process.send_signal(number)
    assert "interrupted" in process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert left_behind(own) == []
