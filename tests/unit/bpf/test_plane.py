"""Opening a plane on a machine that has none."""

from pathlib import Path

import pytest

from bpf.manifest import Manifest, boot_id
from bpf.paths import NodePaths
from bpf.plane import Plane, PlaneUnavailable, possible_cpus


def test_no_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(PlaneUnavailable, match="no programs are loaded for node n1"):
        Plane.open("n1", tmp_path, tmp_path)


def test_set_of_a_former_boot_is_told(tmp_path: Path) -> None:
    paths = NodePaths("n1", tmp_path, tmp_path)
    paths.maps.mkdir(parents=True)
    Manifest("n1", 1, "", "another boot", "").write(paths.manifest)
    with pytest.raises(PlaneUnavailable, match="before the last boot"):
        Plane.open("n1", tmp_path, tmp_path)


def test_set_without_its_maps_is_told(tmp_path: Path) -> None:
    paths = NodePaths("n1", tmp_path, tmp_path)
    paths.maps.mkdir(parents=True)
    Manifest("n1", 1, "", boot_id(), "").write(paths.manifest)
    with pytest.raises(PlaneUnavailable, match="incomplete"):
        Plane.open("n1", tmp_path, tmp_path)


def test_cpus_are_counted() -> None:
    assert possible_cpus() >= 1
