import asyncio
import json

import pytest
from click.testing import CliRunner

from cli import enrol as module
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


def test_in_a_lab_pods_that_cannot_be_enrolled_are_named(monkeypatch):
    def shown(name, namespace="shop", **mesh):
        mesh = {
            "asked": True,
            "settled": True,
            "state": "refused",
            "reason": "listens on 15008",
            "refused": "",
            **mesh,
        }
        return {"namespace": namespace, "name": name, "mesh": mesh}

    pods = [
        shown("web"),
        shown("db", namespace="other"),
        shown("agent", refused="host_network"),
        shown("cart", state="captured"),
        shown("job", asked=False),
    ]
    monkeypatch.setattr(module, "choose", lambda name: "demo")
    monkeypatch.setattr(module.client, "wait_labelled", lambda *_: [])
    answers = {"label": {"outcome": "changed", "object": "Namespace shop"}, "status": {"pods": pods}}
    monkeypatch.setattr(module.client, "order", lambda lab, do, **_: answers[do])
    done = CliRunner().invoke(module.enrol, ["shop", "--lab", "demo", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["missing"] == ["pod web: listens on 15008"]
    assert CliRunner().invoke(module.unenrol, ["shop", "--lab", "demo"]).exit_code == 0
