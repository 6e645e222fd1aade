"""The order of programs is part of the safety of loading and upgrading."""

from bpf.loader.specs import FIGURES, MAPS, PROGRAMS
from bpf.plane import MAPS as OPENED


def test_capture_comes_last() -> None:
    assert [spec.name for spec in PROGRAMS][-2:] == ["connect4", "connect6"]


def test_names_are_unique_and_the_pods_own_programs_are_two() -> None:
    names = [spec.name for spec in PROGRAMS]
    assert len(set(names)) == len(names)
    assert [spec.name for spec in PROGRAMS if not spec.at_root] == ["inbound", "guard"]


def test_plane_opens_exactly_the_maps_that_are_pinned() -> None:
    assert set(OPENED) == set(MAPS)
    assert set(MAPS) > FIGURES
