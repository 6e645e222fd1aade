import json

import pytest

from lab import paths
from lab.manifests import Ref
from lab.paths import LabPaths
from lab.store import Store


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LABS", tmp_path)
    own = LabPaths("t")
    own.manifests.mkdir(parents=True)
    own.scratch.mkdir()
    return own


def manifest(**metadata):
    return {"kind": "Pod", "metadata": {"name": "a", "namespace": "shop", **metadata}}


def test_object_is_a_file_until_it_is_removed(own):
    store = Store(own)
    assert store.put(manifest())
    file = own.manifests / "pod" / "shop_a.json"
    assert json.loads(file.read_text()) == manifest()
    store.remove(Ref("Pod", "shop", "a"))
    assert not file.exists()
    assert store.get(Ref("Pod", "shop", "a")) is None


def test_unchanged_object_is_not_written_again(own):
    store = Store(own)
    store.put(manifest())
    file = own.manifests / "pod" / "shop_a.json"
    before = file.stat().st_ino
    assert not store.put(manifest())
    assert file.stat().st_ino == before


def test_later_change_of_a_given_object_does_not_reach_the_store(own):
    store = Store(own)
    given = manifest()
    store.put(given)
    given["metadata"]["labels"] = {"x": "y"}
    assert "labels" not in store.get(Ref("Pod", "shop", "a"))["metadata"]


def test_no_half_written_file_stands_among_the_manifests(own):
    Store(own).put(manifest())
    assert [path.name for path in own.manifests.rglob("*") if path.is_file()] == ["shop_a.json"]
    assert list(own.scratch.iterdir()) == []
