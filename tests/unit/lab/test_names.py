from hypothesis import given
from hypothesis import strategies as st

from lab import names

PART = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?", fullmatch=True)


def test_namespace_is_named_after_what_it_is():
    assert names.netns_name(("demo", "node-1", "shop", "web"), ()) == "cv-demo-node-1-shop-web"


def test_taken_name_gets_a_hash_instead_of_a_collision():
    taken = {names.netns_name(("l", "n", "a-b", "c"), ())}
    other = names.netns_name(("l", "n", "a", "b-c"), taken)
    assert other not in taken
    assert other.startswith("cv-l-n-a-b-c-")


@given(st.lists(PART, min_size=2, max_size=4))
def test_namespace_name_is_never_too_long(parts):
    assert len(names.netns_name(tuple(parts), ())) <= names.MAX_NETNS


@given(PART, PART)
def test_link_name_fits_the_kernel(namespace, pod):
    assert len(names.link_name(namespace, pod)) <= 15


def test_lab_name_must_fit_a_path():
    assert names.lab_fault("demo-2") is None
    for wrong in ("", "-a", "a/b", "A", "x" * 33, "../x"):
        assert names.lab_fault(wrong), wrong


def test_node_name_may_have_dots():
    assert names.node_fault("node-1.example.org") is None
    assert names.node_fault("node_1")
