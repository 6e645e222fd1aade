"""The machine as something that tests share: programs at the cgroup root see all of it."""

import faulthandler
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from bpf import features

LOCK = Path("/run/lock/culvert-test.lock")


@contextmanager
def _clock_stopped() -> Iterator[None]:
    """The wait for another run is no part of the time that this test may take (pytest-timeout uses this timer)."""
    faulthandler.cancel_dump_traceback_later()  # nor a hang; armed anew for the next test
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)


class _Machine:
    """One lock per process, counted: a fixture of the whole session may hold it while a test asks for it again."""

    def __init__(self) -> None:
        self._users = 0
        self._handle: TextIO | None = None

    def take(self) -> None:
        if self._handle is None:
            handle = LOCK.open("w")
            with _clock_stopped():
                fcntl.flock(handle, fcntl.LOCK_EX)
            self._handle = handle
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if self._users == 0 and self._handle is not None:
            self._handle.close()
            self._handle = None


_machine = _Machine()


@contextmanager
def alone() -> Iterator[None]:
    """No other run of the tests attaches programs meanwhile."""
    _machine.take()
    try:
        yield
    finally:
        _machine.release()


@contextmanager
def ready_for_programs() -> Iterator[None]:
    """Alone, as root, with bpffs and all that the programs need; skips the test where that is not to be had."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces and eBPF")
    if not os.path.ismount("/sys/fs/bpf"):
        subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)
    missing = [check.sentence for check in features.required_for_loading() if not check.is_met]
    if missing:
        pytest.skip("; ".join(missing))
    with alone():
        yield
