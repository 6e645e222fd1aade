import pytest

from lab import paths
from lab.choice import LabError, choose


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LABS", tmp_path)
    return lambda *names: [(tmp_path / name).mkdir() for name in names]


def test_only_lab_is_meant(make):
    make("demo")
    assert choose(None) == "demo"


def test_several_labs_are_listed(make):
    make("one", "two")
    with pytest.raises(LabError, match=r"one, two.*CULVERT_LAB"):
        choose(None)
    assert choose("two") == "two"


def test_unknown_lab_is_refused_with_those_that_exist(make):
    make("one")
    with pytest.raises(LabError, match=r"'other'.*one"):
        choose("other")


def test_without_labs_the_way_to_one_is_shown(make):
    make()
    with pytest.raises(LabError, match="culvert lab up"):
        choose(None)
