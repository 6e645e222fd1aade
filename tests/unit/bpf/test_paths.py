"""Names on bpffs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.paths import NodePaths, escape

KEYS = st.from_regex(r"[A-Za-z0-9._-]{1,60}", fullmatch=True)


@given(KEYS)
def test_escaped_key_is_one_plain_name(key: str) -> None:
    assert "." not in escape(key)
    assert "/" not in escape(key)


@given(KEYS, KEYS)
def test_different_keys_stay_different(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


def test_escape_is_the_agreed_one() -> None:
    assert escape("demo-node-1.example_x") == "demo-node-1_2eexample_5fx"


@pytest.mark.parametrize("key", ["", "a/b", "../x", "a b", "é", "a\n", "x" * 201])
def test_key_that_is_no_name_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="node key"):
        escape(key)


def test_places_of_a_node() -> None:
    paths = NodePaths("lab.1", Path("/b"), Path("/r"))
    assert paths.maps == Path("/b/culvert/lab_2e1/v2/maps")
    assert paths.inbound(42) == Path("/b/culvert/lab_2e1/v2/pods/42/inbound")
    assert paths.manifest == Path("/r/lab.1/bpf/manifest.json")
