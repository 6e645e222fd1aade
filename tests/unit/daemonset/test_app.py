import asyncio
import os
import socket
from pathlib import Path

import pytest

from daemonset import app
from daemonset.app import LoopClock, count_connections
from daemonset.config import Config
from daemonset.enrolment import KernelFault
from daemonset.kernel import NodeKernel
from daemonset.lock import AnotherAgent
from daemonset.programs import LoadFailed
from tests.support.clock import run_virtual
from tests.unit.daemonset.fakes import held_lock

CONFIG = Config.load(["--node", "n1", "--runtime", "/run/culvert/n1", "--controller", "127.0.0.1:1"], {})


class Pinned:
    """A set that is in place, whole or not."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def __enter__(self) -> "Pinned":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def missing(self) -> str:
        return self._missing


@pytest.fixture
def broken_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_loader(verb: str, key: str, timeout_s: float) -> str:
        assert (verb, key) == ("load", "n1")
        raise LoadFailed("no compiler")

    monkeypatch.setattr(app, "run_loader", run_loader)


def test_an_intact_older_set_serves_on_when_loading_fails(broken_loader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeKernel, "open", lambda key: Pinned(""))
    assert asyncio.run(app._load_programs(CONFIG)) == "no compiler"


def test_a_broken_older_set_does_not(broken_loader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeKernel, "open", lambda key: Pinned("links is empty"))
    with pytest.raises(LoadFailed, match="no compiler"):
        asyncio.run(app._load_programs(CONFIG))


def test_without_any_set_the_loaders_reason_is_told(broken_loader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(key: str) -> Pinned:
        raise KernelFault("no programs are loaded")

    monkeypatch.setattr(NodeKernel, "open", nothing)
    with pytest.raises(LoadFailed, match="no compiler"):
        asyncio.run(app._load_programs(CONFIG))


def test_the_clock_waits_and_a_cut_wait_leaves_no_timer() -> None:
    async def run() -> None:
        loop, clock = asyncio.get_running_loop(), LoopClock()
        before = loop.time()
        await clock.after(30)
        assert loop.time() == pytest.approx(before + 30)
        cut = clock.after(30)
        cut.cancel()
        await asyncio.sleep(31)
        assert cut.cancelled()

    run_virtual(run())


def test_only_connections_that_leave_the_namespace_count() -> None:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        before = count_connections(fd)
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            assert count_connections(fd) == before
    finally:
        os.close(fd)


def test_the_second_agent_does_not_touch_what_the_first_works_on(tmp_path: Path) -> None:
    flags = ["--node", "n1", "--runtime", str(tmp_path), "--controller", "127.0.0.1:1", "--handover-s", "0"]
    with held_lock(tmp_path), pytest.raises(AnotherAgent):
        asyncio.run(app.run(Config.load(flags, {})))
    assert sorted(found.name for found in tmp_path.iterdir()) == ["agent.lock"]
