"""Sets that are damaged, of another shape, schema or boot: what a load makes of them, and what it refuses."""

import json
import os

import pytest

from bpf import cgroup, kernel
from bpf.kernel import MapShape
from bpf.loader import install
from bpf.loader.specs import MAPS, PROGRAMS
from bpf.paths import NodePaths
from bpf.plane import Plane, PlaneUnavailable
from tests.bpf.attached import attached
from tests.bpf.conftest import BOTH, loader
from tests.bpf.topology import Topology


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda paths: (paths.links / "connect4").unlink(), id="a link is gone"),
        pytest.param(lambda paths: install.remove_tree(paths.links), id="all links are gone"),
        pytest.param(lambda paths: install.remove_tree(paths.programs), id="no programs"),
        pytest.param(lambda paths: paths.manifest.unlink(), id="no manifest"),
        pytest.param(lambda paths: paths.manifest.write_text("[]"), id="manifest is rubbish"),
        pytest.param(lambda paths: (paths.maps / "counters").unlink(), id="figures are gone"),
    ],
)
def test_load_repairs_and_keeps_what_is_enrolled(spare: NodePaths, net: Topology, damage: object) -> None:
    install.load(spare)
    with Plane.open(spare.key) as plane:
        plane.put_workload(net.a.address4, 77)
    assert callable(damage)
    damage(spare)
    assert install.load(spare) == "upgraded"
    with Plane.open(spare.key) as plane:
        assert plane.workloads() == {net.a.address4: 77}
    assert {path.name for path in spare.links.iterdir()} == {spec.name for spec in PROGRAMS if spec.at_root}
    assert install.load(spare) == "unchanged"


def test_set_without_its_enrolment_map_is_not_repaired_in_silence(spare: NodePaths) -> None:
    install.load(spare)
    (spare.maps / "pods").unlink()
    done = loader("load", "--node", spare.key, check=False)
    assert done.returncode == 1
    assert "map pods" in done.stderr
    assert [path.name for path in spare.node.iterdir()] == [spare.set.name]


def test_map_of_another_shape_stops_the_upgrade_with_nothing_changed(
    spare: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    install.load(spare)
    before = attached()
    other = MapShape(1, 8, 48, 1024, 1)
    monkeypatch.setitem(MAPS, "pods", other)
    with pytest.raises(install.CannotInstall, match="map pods has another shape"):
        install.upgrade(spare)
    assert attached() == before
    assert [path.name for path in spare.node.iterdir()] == [spare.set.name]


def test_figures_of_another_shape_start_anew(spare: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    install.load(spare)
    fd = kernel.open_pin(spare.maps / "counters")
    former = kernel.map_id(fd)
    os.close(fd)
    monkeypatch.setitem(MAPS, "counters", MapShape(6, 4, 8, 3, 0))
    assert install.upgrade(spare) == "upgraded"
    fd = kernel.open_pin(spare.maps / "counters")
    assert kernel.map_id(fd) != former
    os.close(fd)


def test_set_of_another_schema_is_not_touched(spare: NodePaths) -> None:
    (spare.node / "v0").mkdir(parents=True)
    done = loader("load", "--node", spare.key, check=False)
    assert done.returncode == 1
    assert "another schema" in done.stderr
    assert (spare.node / "v0").exists()


def test_set_of_a_former_boot_is_replaced(spare: NodePaths, net: Topology) -> None:
    """Cookies restart at boot: nothing that such a set says may be believed."""
    install.load(spare)
    with Plane.open(spare.key) as plane:
        plane.enrol(net.a.cookie, net.a.address4, None, BOTH)
    raw = json.loads(spare.manifest.read_text())
    raw["boot"] = "00000000-0000-0000-0000-000000000000"
    spare.manifest.write_text(json.dumps(raw))
    with pytest.raises(PlaneUnavailable, match="before the last boot"):
        Plane.open(spare.key)
    assert install.load(spare) == "loaded"
    with Plane.open(spare.key) as plane:
        assert plane.pods() == {}


def test_link_to_another_cgroup_than_the_root_is_no_link(spare: NodePaths) -> None:
    """What a loader in a container's cgroup namespace would have left: it misses every other pod."""
    install.load(spare)
    before = attached()
    below = cgroup.find_root() / f"{spare.key}-below"
    below.mkdir()
    try:
        path = spare.links / "connect4"
        kernel.link_remove(path)
        program = kernel.open_pin(spare.programs / "connect4")
        target = os.open(below, os.O_RDONLY)
        link = kernel.link_create(program, target, 10)
        kernel.pin(link, path)
        for fd in (link, target, program):
            os.close(fd)
        assert install.load(spare) == "upgraded"
        assert len(attached()["connect4"]) == len(before["connect4"])
        assert install.load(spare) == "unchanged"
    finally:
        below.rmdir()
