import asyncio

import pytest

from cli.install.waiting import TimedOut, conditions_of, trouble, until
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
