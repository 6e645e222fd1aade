import asyncio

import pytest

from cli.enrol import not_followed
from mesh.enrolment import CAPTURE_ANNOTATION, ISTIO_LABEL, MESH_LABEL


class Pages:
    """An API with pods."""

    def __init__(self, *pods):
        self.pods = pods

    async def pages(self, selection):
        yield list(self.pods)


def pod(capture="", *, label=None, **changes):
    metadata = {
        "name": "p",
        "labels": {MESH_LABEL: label} if label else {},
        "annotations": {CAPTURE_ANNOTATION: capture},
    }
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Running"}, **changes}


def missing(found, labels, istio_labels=False):
    return asyncio.run(not_followed(Pages(found), "shop", labels, istio_labels=istio_labels))


IN, OUT = {MESH_LABEL: "enabled"}, {}


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        (pod("enabled"), IN),
        (pod("bypassing"), OUT),
        (pod(""), OUT),
        (pod("enabled", label="enabled"), OUT),
        (pod("", label="disabled"), IN),
        (pod("", spec={"hostNetwork": True}), IN),
        (pod("", status={"phase": "Succeeded"}), IN),
    ],
)
def test_what_is_as_its_labels_ask_is_not_waited_for(found, labels):
    assert missing(found, labels) == []


@pytest.mark.parametrize("istio_labels", [False, True])
def test_labels_of_istio_count_where_they_are_honoured(istio_labels):
    ambient = {ISTIO_LABEL: "ambient"}
    behind = missing(pod("enabled"), ambient, istio_labels), missing(pod(""), ambient, istio_labels)
    assert [bool(lines) for lines in behind] == [not istio_labels, istio_labels]


def test_what_is_not_is_named():
    assert missing(pod("pending"), IN) == ["pod p is not captured yet"]
    assert missing(pod("enabled"), OUT) == ["pod p is still captured"]


def test_a_label_that_says_nothing_is_said_and_not_waited_out_in_silence():
    (line,) = missing(pod("", label="yes"), IN)
    assert "neither enabled nor disabled" in line
