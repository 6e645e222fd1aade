import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from cli.install.waiting import TimedOut, conditions_of, pods_in_trouble, trouble, until
from mesh.kube.api import Page
from mesh.kube.errors import Forbidden, Unavailable


def pod(**status):
    return {"metadata": {"name": "p"}, "status": status}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pod(), ""),
        (pod(containerStatuses=[{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]), ""),
        (pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]), "0/2 nodes"),
        (
            pod(containerStatuses=[{"name": "a", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]),
            "container a: ErrImagePull: no",
        ),
        (
            pod(containerStatuses=[{"name": "a", "state": {}, "lastState": {"terminated": {"exitCode": 2}}}]),
            "container a ended with 2",
        ),
        (
            pod(initContainerStatuses=[{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
            "container i ended with 1 Error",
        ),
        (pod(containerStatuses=[{"name": "a", "ready": True, "lastState": {"terminated": {"exitCode": 2}}}]), ""),
    ],
)
def test_a_pods_status_says_what_is_wrong(found, said):
    assert trouble(found) == said


class Told:
    """An API with one pod and one event about it."""

    def __init__(self, age_s, reason):
        made = datetime.now(UTC) - timedelta(seconds=age_s)
        metadata = {"name": "p", "namespace": "n", "uid": "u", "creationTimestamp": f"{made:%Y-%m-%dT%H:%M:%SZ}"}
        self.items = {"pods": [{"metadata": metadata, "spec": {}}], "events": [{"reason": reason, "message": "why"}]}

    async def page(self, selection):
        return Page(self.items[selection.resource.plural], "1", "")


@pytest.mark.parametrize(
    ("age_s", "reason", "said"),
    [(5, "Unhealthy", []), (90, "Unhealthy", ["pod p: why"]), (5, "FailedMount", ["pod p: why"])],
)
def test_probes_that_fail_are_no_trouble_of_a_pod_that_just_starts(age_s, reason, said):
    assert asyncio.run(pods_in_trouble(Told(age_s, reason), "n", "x")) == said


def test_a_new_object_has_no_conditions():
    assert not conditions_of({"status": {"conditions": None}})
    assert not conditions_of({})


def waited(answers, timeout_s=5.0):
    said = []

    async def look():
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    asyncio.run(until("it", look, timeout_s, said.append, interval_s=0.001))
    return said


def test_each_change_is_said_once():
    assert waited([["a"], ["a"], ["b"], []]) == ["waiting for it: a", "waiting for it: b"]


def test_a_server_that_is_away_is_waited_for():
    assert waited([Unavailable("away"), []]) == ["waiting for it: away"]


def test_a_right_that_is_missing_is_not():
    with pytest.raises(Forbidden):
        waited([Forbidden("no")])


def test_after_the_bound_it_says_what_is_missing():
    with pytest.raises(TimedOut, match=r"it: not within 0\.01 s\n  still this"):
        waited([["still this"]], timeout_s=0.01)
