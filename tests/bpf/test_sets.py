"""Whole program sets: loading, living side by side, and removal however broken they are."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpf import kernel
from bpf.loader import build, install
from bpf.loader.specs import MAPS, PROGRAMS, ProgramSpec
from bpf.manifest import Manifest
from bpf.paths import NodePaths
from bpf.plane import Plane, PlaneUnavailable
from tests.bpf.attached import attached
from tests.bpf.conftest import Ztunnel, enrol, loader
from tests.bpf.dialling import accepted, dial
from tests.bpf.topology import Topology


def test_load_pins_everything_and_describes_it(spare: NodePaths) -> None:
    before = attached()
    assert loader("load", "--node", spare.key).stdout == "loaded\n"
    assert {path.name for path in spare.maps.iterdir()} == set(MAPS)
    assert {path.name for path in spare.programs.iterdir()} == {spec.name for spec in PROGRAMS}
    assert {path.name for path in spare.links.iterdir()} == {spec.name for spec in PROGRAMS if spec.at_root}
    manifest = Manifest.read(spare.manifest)
    assert manifest is not None
    assert manifest.shapes == MAPS
    assert set(manifest.tags) == {spec.name for spec in PROGRAMS}
    after = attached()
    assert all(len(after[name] - before[name]) >= 1 for name in after)
    assert [path.name for path in spare.node.iterdir()] == [spare.set.name]


def test_load_of_a_loaded_set_does_nothing(spare: NodePaths) -> None:
    loader("load", "--node", spare.key)
    before = attached()
    assert loader("load", "--node", spare.key).stdout == "unchanged\n"
    assert attached() == before


def test_unload_leaves_nothing(spare: NodePaths) -> None:
    before = attached()
    loader("load", "--node", spare.key)
    assert loader("unload", "--node", spare.key).stdout == "unloaded\n"
    assert attached() == before
    assert not spare.node.exists()
    assert not spare.manifest.exists()
    assert loader("unload", "--node", spare.key).stdout == "nothing was loaded\n"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda paths: paths.manifest.unlink(), id="no manifest"),
        pytest.param(lambda paths: paths.manifest.write_text("{]"), id="manifest is rubbish"),
        pytest.param(lambda paths: install.remove_tree(paths.maps), id="no maps"),
        pytest.param(lambda paths: install.remove_tree(paths.programs), id="no programs"),
        pytest.param(lambda paths: (paths.links / "connect4").unlink(), id="a link is gone"),
        pytest.param(lambda paths: (paths.node / "staging-1" / "links").mkdir(parents=True), id="staging left"),
        pytest.param(lambda paths: (paths.node / "v0").mkdir(), id="another schema beside it"),
    ],
)
def test_unload_works_on_a_half_broken_set(spare: NodePaths, damage: object) -> None:
    before = attached()
    install.load(spare)
    assert callable(damage)
    damage(spare)
    install.unload(spare)
    assert attached() == before
    assert not spare.node.exists()


def test_two_sets_at_one_root_act_on_their_own_pods_only(
    net: Topology, plane: Plane, ztunnel: Ztunnel, spare: NodePaths
) -> None:
    """Pod a is the first node's, pod b the second's."""
    install.load(spare)
    with Plane.open(spare.key) as second:
        enrol(second, net.b)
        other = Ztunnel(second, net.b)
        try:
            with dial(net.a, "10.77.9.1"), accepted(ztunnel.outbound4) as sock:
                assert plane.note(sock) is not None
                assert second.note(sock) is None
            with dial(net.b, "10.77.9.1"), accepted(other.outbound4) as sock:
                assert second.note(sock) is not None
                assert plane.note(sock) is None
            assert (plane.in_flight(), second.in_flight()) == (0, 0)
        finally:
            other.close()
            second.unenrol(net.b.cookie)
    before = attached()
    install.unload(spare)
    assert all(len(attached()[name]) < len(before[name]) for name in before)
    with dial(net.a, "10.77.9.1"), accepted(ztunnel.outbound4) as sock:
        assert plane.note(sock) is not None


def test_plane_of_a_node_without_a_set_says_why(spare: NodePaths) -> None:
    with pytest.raises(PlaneUnavailable, match="no programs are loaded"):
        Plane.open(spare.key)


def test_bad_key_is_refused(machine: None) -> None:
    done = loader("load", "--node", "../../etc", check=False)
    assert done.returncode == 1
    assert "node key" in done.stderr


def test_program_that_the_verifier_refuses_is_named(spare: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """connect4 as an sk_lookup program: its context has no such fields."""
    wrong = tuple(ProgramSpec("connect4", 30, 36) if spec.name == "connect4" else spec for spec in PROGRAMS)
    monkeypatch.setattr(build, "PROGRAMS", wrong)
    before = attached()
    with pytest.raises(build.LoadFailed, match="refuses program connect4"):
        install.load(spare)
    assert attached() == before
    assert not spare.node.exists()


def test_failed_load_attaches_and_pins_nothing(spare: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = attached()
    genuine = kernel.pin
    pinned = 0

    def fails_late(fd: int, path: Path) -> None:
        nonlocal pinned
        pinned += path.parent.name == "links"
        if pinned == 5:
            raise OSError(28, "injected")
        genuine(fd, path)

    monkeypatch.setattr(kernel, "pin", fails_late)
    with pytest.raises(OSError, match="injected"):
        install.load(spare)
    assert attached() == before
    assert not spare.node.exists()
    assert not spare.manifest.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_loader_killed_on_the_way_leaves_nothing_attached(spare: NodePaths, number: signal.Signals) -> None:
    """At moments between its start and its end. Either it was done, or nothing runs; the next load works."""
    before = attached()
    killed = 0
    for step in range(6):
        child = subprocess.Popen(
            [sys.executable, "-m", "bpf.loader", "load", "--node", spare.key],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.1 * (step + 1))
        child.send_signal(number)
        killed += child.wait(10) != 0
        if not spare.set.exists():
            assert attached() == before
        elif number == signal.SIGTERM:
            assert Manifest.read(spare.manifest) is not None
        install.unload(spare)
        assert attached() == before
        assert not spare.node.exists()
    assert killed >= 3
    assert install.load(spare) == "loaded"


def test_info_prints_every_program_and_attaches_none(machine: None) -> None:
    before = attached()
    rows = json.loads(loader("info", "--json").stdout)
    assert {row["name"] for row in rows} == {spec.name for spec in PROGRAMS}
    for row in rows:
        assert 0 < row["instructions"] < 4096
        assert 0 < row["processed"] < 20_000
        assert row["stack_bytes"] <= 256
    assert attached() == before


def test_compiling_says_nothing(spare: NodePaths) -> None:
    """No warning of the compiler, no log of the verifier."""
    done = loader("load", "--node", spare.key)
    assert done.stderr == ""
