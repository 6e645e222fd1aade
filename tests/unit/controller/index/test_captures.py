"""Who says that a pod is captured: its node's agent, and for controllers without one the pod's annotation."""

import dataclasses
from pathlib import Path

from controller.index.captures import Captures
from controller.index.objects import Pod

WEB = Pod("shop", "web", {}, uid="u1", node="a")
MARKED = dataclasses.replace(WEB, is_annotated_captured=True)
ALL = {"shop/web": "u1"}


def test_without_a_report_the_annotation_counts() -> None:
    captures = Captures()
    assert captures.is_captured(MARKED)
    assert not captures.is_captured(WEB)


def test_a_report_counts_more_than_an_annotation() -> None:
    captures = Captures()
    captures.connect("a")
    assert captures.report("a", {}) == set()
    assert captures.has_reported("a")
    assert not captures.is_captured(MARKED)
    assert captures.report("a", ALL) == {"shop/web"}
    assert captures.is_captured(WEB)
    captures.note_annotation(MARKED, WEB)  # it talks to us: what it writes elsewhere is no news
    assert captures.is_captured(WEB)


def test_a_report_outlives_its_stream_until_the_annotation_turns() -> None:
    captures = Captures()
    captures.connect("a")
    captures.report("a", ALL)
    captures.disconnect("a")
    captures.note_annotation(None, WEB)  # not annotated yet, or `pending`: older than the report
    captures.note_annotation(WEB, WEB)
    assert captures.is_captured(WEB)
    captures.note_annotation(WEB, MARKED)
    assert captures.is_captured(MARKED)
    captures.note_annotation(MARKED, WEB)  # the agent, talking to another controller, has let it go
    assert not captures.is_captured(WEB)


def test_a_pod_that_is_captured_while_the_agent_talks_to_another_controller() -> None:
    captures = Captures()
    captures.report("a", {})
    captures.note_annotation(None, MARKED)
    assert captures.is_captured(MARKED)


def test_of_two_agents_of_a_node_one_may_leave() -> None:
    captures = Captures()
    captures.connect("a")
    captures.connect("a")
    captures.report("a", ALL)
    captures.disconnect("a")
    captures.note_annotation(MARKED, WEB)
    assert captures.is_captured(WEB)
    captures.disconnect("a")
    captures.note_annotation(MARKED, WEB)
    assert not captures.is_captured(WEB)


def test_the_end_of_a_pod_ends_its_capture_and_not_that_of_its_successor() -> None:
    captures = Captures()
    captures.report("a", ALL)
    captures.forget([WEB])
    assert not captures.is_captured(WEB)
    captures.report("a", {"shop/web": "u2"})  # of the successor, before the end of this one was seen
    captures.forget([WEB])
    assert captures.is_captured(dataclasses.replace(WEB, uid="u2"))


def test_a_node_that_is_gone_is_forgotten_unless_something_on_it_is_captured() -> None:
    captures = Captures()
    captures.report("a", ALL)
    captures.forget_node("a")
    assert captures.is_captured(WEB)
    captures.report("a", {})
    captures.forget_node("a")
    assert not captures.has_reported("a")


def test_an_annotation_of_a_predecessor_says_nothing_about_a_pod() -> None:
    captures = Captures()
    captures.report("a", {"shop/web": "u2"})
    captures.note_annotation(MARKED, dataclasses.replace(WEB, uid="u2"))
    assert captures.is_captured(dataclasses.replace(WEB, uid="u2"))


def test_what_is_kept_in_a_file_is_what_was_reported(tmp_path: Path) -> None:
    path = tmp_path / "captures.json"
    captures = Captures(path)
    captures.report("a", ALL)
    captures.report("b", {})
    again = Captures(path)
    assert again.is_captured(WEB)
    assert again.has_reported("b")
    assert again.view() == {"a": ["shop/web"]}
