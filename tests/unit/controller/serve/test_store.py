"""The order of changes, and letting go of removals."""

from controller.serve.store import ResourceSet
from controller.translate.compile import Resource
from mesh.xds import ADDRESS_TYPE


def put(store: ResourceSet, name: str, version: str = "v1") -> None:
    store.put(Resource(ADDRESS_TYPE, name, version, b""))


def test_only_removals_up_to_the_revision_are_forgotten() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    for name in ("a", "b", "c"):
        put(store, name)
    store.remove("a")
    seen = store.revision
    store.remove("b")
    store.forget_removed(seen)
    assert store.changed_since(0) == ["c", "b"]


def test_what_came_back_is_no_removal() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "a")
    store.remove("a")
    put(store, "a", "v2")
    store.forget_removed(store.revision)
    assert store.changed_since(0) == ["a"]
    store.remove("a")
    assert store.changed_since(0) == ["a"]
    store.forget_removed(store.revision)
    assert store.changed_since(0) == []
