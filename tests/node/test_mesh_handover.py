"""One ztunnel of a node replaces another under steady traffic. Topology: see mesh_stage.py.

The next one is started as a DaemonSet's surge does it: beside the running one, with the same settings. The supervisor
of the lab starts a new one when its own ends, which then takes over in turn.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import Mesh
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]

ROUNDS = 5  # of two hand-overs each


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("handover", tmp_path_factory.mktemp("handover")) as running:
        yield running


class Next:
    """A second ztunnel beside the one of a process id."""

    def __init__(self, pid: int, folder: Path) -> None:
        proc = Path(f"/proc/{pid}")
        self.ready = folder / "ready"
        self.ready.unlink(missing_ok=True)
        command = [part.decode() for part in (proc / "cmdline").read_bytes().split(b"\0")[:-1]]
        environment = dict(
            part.decode().partition("=")[::2] for part in (proc / "environ").read_bytes().split(b"\0") if part
        )
        self._log = folder / "next.log"
        with self._log.open("ab") as log:
            self._begin = log.tell()
            self.process = subprocess.Popen(
                ["nsenter", "-t", str(pid), "--net", "--mount", *command, f"--ready-file={self.ready}"],
                env=environment,
                cwd=(proc / "cwd").readlink(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def has_handed_over(self) -> bool:
        return b"the ztunnel after this one serves the pods now" in self._log.read_bytes()[self._begin :]

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(20)


@contextmanager
def beside(mesh: Mesh, node: str, folder: Path) -> Iterator[Next]:
    """The next ztunnel of a node, once it serves."""
    made = Next(mesh.pid(node, "ztunnel"), folder)
    try:
        eventually(made.ready.exists, 30)
        yield made
    finally:
        made.end()


def replace(mesh: Mesh, node: str, folder: Path) -> None:
    """End the node's ztunnel when the next one serves, and that one when the supervisor's new one does."""
    before = mesh.pid(node, "ztunnel")
    with beside(mesh, node, folder) as taken:
        os.kill(before, signal.SIGTERM)
        eventually(taken.has_handed_over, 30)


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_no_connection_is_refused_while_ztunnels_replace_each_other(mesh: Mesh, node: str, tmp_path: Path) -> None:
    watcher = mesh.watch("shop/client", mesh.ips("shop/web")[0], 200)
    plain = mesh.watch("legacy/outside", mesh.ips("shop/web")[0], 200)
    try:
        assert watcher.stdout is not None and watcher.stdout.readline() == "start\n"
        for _ in range(ROUNDS):
            replace(mesh, node, tmp_path)
        time.sleep(1)
        for process in (watcher, plain):
            process.terminate()
            seen = json.loads(process.communicate(timeout=20)[0].splitlines()[-1])
            assert len(seen) > 200
            assert [entry for entry in seen if not entry[1]] == [], (tmp_path / "next.log").read_text()[-3000:]
    finally:
        for process in (watcher, plain):
            process.kill()
            process.wait()


def test_the_next_one_killed_after_it_took_over_leaves_a_gap_and_no_hole(mesh: Mesh, tmp_path: Path) -> None:
    with beside(mesh, "node-a", tmp_path) as taken:
        assert mesh.client("shop/client", "many", "web", 7001, "20")["failed"] == 0
        taken.end(signal.SIGKILL)
        eventually(lambda: mesh.client("shop/client", "many", "web", 7001, "1")["failed"] == 0, 10)
    assert mesh.client("shop/client", "many", "web", 7001, "50")["failed"] == 0


def test_the_next_one_killed_before_it_serves_is_not_noticed(mesh: Mesh, tmp_path: Path) -> None:
    watcher = mesh.watch("shop/client", mesh.ips("shop/web")[0], 12)
    assert watcher.stdout is not None and watcher.stdout.readline() == "start\n"
    for pause in (0.3, 0.8, 1.2, 1.6):
        started = Next(mesh.pid("node-a", "ztunnel"), tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):
            started.process.wait(pause)
        if not started.ready.exists():
            started.end(signal.SIGKILL)
        else:
            started.end(signal.SIGKILL)
            eventually(lambda: mesh.client("shop/client", "many", "web", 7001, "1")["failed"] == 0, 10)
    seen = json.loads(watcher.communicate(timeout=30)[0].splitlines()[-1])
    failed = [entry for entry in seen if not entry[1]]
    # One that has just said its word when it is killed is the case of the test above: a gap, at once over.
    assert all(entry[2] < 1 for entry in failed)
    assert seen[-1][1]
    assert len(failed) < 60


def test_a_killed_ztunnel_without_a_next_one_still_refuses_at_once(mesh: Mesh) -> None:
    watcher = mesh.watch("shop/client", mesh.ips("shop/web")[0], 4)
    assert watcher.stdout is not None and watcher.stdout.readline() == "start\n"
    os.kill(mesh.pid("node-a", "ztunnel"), signal.SIGKILL)
    seen = json.loads(watcher.communicate(timeout=20)[0].splitlines()[-1])
    failed = [entry for entry in seen if not entry[1]]
    assert failed
    assert max(entry[2] for entry in failed) < 0.5
    assert seen[-1][1]
