"""The lock with which tests share the machine."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.support import machine


@pytest.mark.timeout(2)
def test_wait_for_another_run_is_not_the_time_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    monkeypatch.setattr(machine, "LOCK", lock)
    monkeypatch.setattr(machine, "_machine", machine._Machine())
    holder = ["flock", str(lock), "sh", "-c", "echo held; exec sleep 3"]
    with subprocess.Popen(holder, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        started = time.monotonic()
        with machine.alone():
            assert time.monotonic() - started > 2


@pytest.mark.timeout(120)
def test_the_clock_of_the_test_goes_on_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(machine, "_machine", machine._Machine())
    with machine.alone():
        left_s = machine.signal.getitimer(machine.signal.ITIMER_REAL)[0]
        assert 0 < left_s <= 120
