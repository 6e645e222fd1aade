import pytest

from mesh.kube.documents import annotations_of, labels_of


@pytest.mark.parametrize("metadata", [{}, {"labels": None, "annotations": None}, {"labels": {}, "annotations": {}}])
def test_what_is_absent_null_or_empty_is_empty(metadata):
    assert labels_of({"metadata": metadata}) == {}
    assert annotations_of({"metadata": metadata}) == {}


def test_what_is_there_is_given():
    found = {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}}
    assert labels_of(found) == {"a": "b"}
    assert annotations_of(found) == {"c": "d"}
