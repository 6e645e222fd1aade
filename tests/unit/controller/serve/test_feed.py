"""What a stream still needs, as traces over a store that changes under it."""

from hypothesis import given
from hypothesis import strategies as st

from controller.serve.feed import MAX_RESPONSE_BYTES, Feed
from controller.serve.store import SHARED_BYTES, Batch, ResourceSet
from controller.translate.compile import Resource
from mesh.xds import ADDRESS_TYPE, Subscription


def put(store: ResourceSet, name: str, version: str = "v1", tags: tuple[str, ...] = (), size: int = 10) -> None:
    store.put(Resource(ADDRESS_TYPE, name, version, b"x" * size, tags))


def names(batch: Batch) -> list[str]:
    return [name for name, _ in batch.sent]


def feed(store: ResourceSet, *wanted: str) -> Feed:
    return Feed(store, Subscription(is_wildcard=not wanted, names=set(wanted)))


def test_a_new_node_gets_everything_and_then_only_changes() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "a")
    put(store, "b")
    one = feed(store)
    one.start({})
    assert names(one.next_batch()) == ["a", "b"]
    assert one.is_drained
    put(store, "b", "v2")
    assert not one.is_drained
    assert names(one.next_batch()) == ["b"]
    assert not one.next_batch()


def test_who_keeps_up_gets_what_all_others_get() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "a")
    put(store, "b")
    feeds = [feed(store) for _ in range(3)]
    for one in feeds:
        one.start({})
        one.next_batch()
    put(store, "a", "v2")
    store.remove("b")
    late = feeds.pop()
    first, *others = [one.next_batch() for one in feeds]
    assert (first.sent, first.removed) == ((("a", "v2"),), ("b",))
    assert all(one is first for one in others)
    put(store, "a", "v3")
    assert [one.next_batch().sent for one in (*feeds, late)] == [(("a", "v3"),)] * 3
    put(store, "a", "v4", size=SHARED_BYTES + 1)
    assert [one.next_batch().sent for one in (*feeds, late)] == [(("a", "v4"),)] * 3
    assert all(one.is_drained for one in (*feeds, late))


def test_a_node_that_held_something_gets_the_difference() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "same")
    put(store, "newer", "v2")
    put(store, "new")
    one = feed(store)
    one.start({"same": "v1", "newer": "v1", "gone": "v1"})
    batch = one.next_batch()
    assert sorted(names(batch)) == ["new", "newer"]
    assert batch.removed == ("gone",)


def test_what_was_overtaken_is_sent_once_in_its_last_form() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    one = feed(store)
    one.start({})
    for version in ("v1", "v2", "v3"):
        put(store, "a", version)
    put(store, "b")
    store.remove("b")
    batch = one.next_batch()
    assert batch.sent == (("a", "v3"),)
    assert batch.removed == ("b",)


def test_a_removed_resource_that_came_back_is_not_removed() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "a")
    one = feed(store)
    one.start({"a": "v1"})
    store.remove("a")
    put(store, "a", "v2")
    batch = one.next_batch()
    assert (batch.sent, batch.removed) == ((("a", "v2"),), ())


def test_removals_wait_when_they_are_told_to() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "a")
    one = feed(store)
    one.start({"a": "v1"})
    store.remove("a")
    put(store, "b")
    assert one.next_batch(removals=False).removed == ()
    assert not one.is_drained
    assert one.next_batch().removed == ("a",)
    assert one.is_drained


def test_responses_are_bounded_in_bytes_and_a_huge_resource_still_goes() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    for name in ("a", "b", "c"):
        put(store, name, size=MAX_RESPONSE_BYTES * 2 // 3)
    put(store, "huge", size=MAX_RESPONSE_BYTES * 2)
    one = feed(store)
    one.start({})
    batches = [names(one.next_batch()) for _ in range(4)]
    assert batches == [["a"], ["b"], ["c"], ["huge"]]


def test_a_name_that_stands_for_nothing_is_answered_as_removed_and_followed() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    one = feed(store, "/10.0.0.1")
    one.start({})
    assert one.next_batch().removed == ("/10.0.0.1",)
    put(store, "pod", tags=("/10.0.0.1",))
    put(store, "other", tags=("/10.0.0.2",))
    assert names(one.next_batch()) == ["pod"]
    store.remove("pod")
    assert one.next_batch().removed == ("pod",)


def test_who_asks_for_a_service_gets_its_endpoints_now_and_later() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "ns/web.host", tags=("/10.96.0.1",))
    put(store, "pod-1", tags=("/10.0.0.1", "ns/web.host"))
    one = feed(store, "/10.96.0.1")
    one.start({})
    assert sorted(names(one.next_batch())) == ["ns/web.host", "pod-1"]
    put(store, "pod-2", tags=("/10.0.0.2", "ns/web.host"))
    put(store, "pod-3", tags=("/10.0.0.3",))
    assert names(one.next_batch()) == ["pod-2"]


def test_an_on_demand_node_that_reconnects_keeps_following_what_it_holds() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "pod", "v2")
    one = Feed(store, Subscription(names=set()))
    one.start({"pod": "v1", "gone": "v1"})
    batch = one.next_batch()
    assert (batch.sent, batch.removed) == ((("pod", "v2"),), ("gone",))
    put(store, "pod", "v3")
    assert names(one.next_batch()) == ["pod"]


def test_names_that_are_given_up_are_no_longer_followed() -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "a")
    put(store, "b")
    wanted = Subscription(names={"a", "b"})
    one = Feed(store, wanted)
    one.start({})
    one.next_batch()
    wanted.names.remove("a")
    one.narrow(["a"])
    put(store, "a", "v2")
    put(store, "b", "v2")
    assert names(one.next_batch()) == ["b"]


STEPS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "v1", "v2", "read"])), max_size=40)


@given(STEPS, st.dictionaries(st.sampled_from("abcde"), st.sampled_from(["v1", "v2"])))
def test_a_reader_ends_with_what_the_store_holds(steps: list[tuple[str, str]], held: dict[str, str]) -> None:
    store = ResourceSet(ADDRESS_TYPE)
    put(store, "a")
    one = feed(store)
    one.start(held)
    mirror = dict(held)

    def read() -> None:
        batch = one.next_batch()
        mirror.update(batch.sent)
        for name in batch.removed:
            mirror.pop(name, None)
        store.forget_removed(one.revision)

    for name, what in steps:
        if what == "read":
            read()
        elif what:
            put(store, name, what)
        else:
            store.remove(name)
    read()
    assert mirror == {one.name: one.version for one in store.resources()}
