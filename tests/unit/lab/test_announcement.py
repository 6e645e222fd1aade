from typing import Any

import pytest

from lab.announcement import compare


def pod(name: str = "web", **changes: Any) -> dict[str, Any]:
    mesh = {"asked": True, "settled": True, "state": "captured", "reason": ""}
    entry = {"namespace": "shop", "name": name, "uid": f"uid-{name}", "phase": "Running", "ready": True, "away": False}
    return {**entry, "mesh": mesh, **changes}


def row(name: str = "web", **changes: Any) -> dict[str, Any]:
    return {"uid": f"uid-{name}", "asked": True, "captured": True, "ready": True, **changes}


def said(*rows: dict[str, Any], **nodes: bool) -> dict[str, Any]:
    return {"source_read": True, "nodes": nodes or {"a": True}, "pods": list(rows)}


OUTSIDE = {"asked": False, "settled": True, "state": "", "reason": ""}


def test_nothing_is_missing_when_all_is_known_to_all() -> None:
    assert compare(said(row(), a=True, b=True), ["a", "b"], [pod()]) == []


def test_pods_that_are_not_ready_away_or_over_are_not_waited_for() -> None:
    pods = [pod(ready=False), pod(away=True), pod(phase="Succeeded"), pod(phase="Terminating")]
    assert compare(said(), ["a"], pods) == []


@pytest.mark.parametrize(
    ("answer", "entry", "words"),
    [
        (said(row(), a=False), pod(), "node a: has not taken"),
        (said(row(), b=True), pod(), "node a: ztunnel is not connected"),
        ({**said(row()), "source_read": False}, pod(), "has not read"),
        (said(), pod(), "does not know it yet"),
        (said(row(uid="uid-of-an-earlier-one")), pod(), "does not know it yet"),
        (said(row(ready=False)), pod(), "is ready"),
        (said(row(captured=False)), pod(), "it is captured"),
        (said(row()), pod(mesh=OUTSIDE), "no longer captured"),
    ],
)
def test_what_is_missing_is_said(answer: dict[str, Any], entry: dict[str, Any], words: str) -> None:
    (line,) = compare(answer, ["a"], [entry])
    assert words in line


def test_pod_that_the_agent_refused_is_not_waited_for() -> None:
    refused = {"asked": True, "settled": True, "state": "refused", "reason": "it listens on 15006"}
    assert compare(said(row(captured=False)), ["a"], [pod(mesh=refused)]) == []
