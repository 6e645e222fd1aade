from itertools import product

import pytest

from daemonset.lifecycle import TABLE, Goal, Outcome, State, Step, after

LIVING = [state for state in State if state is not State.REMOVED]


def walk(state: State, goal: Goal) -> list[Step]:
    """The steps taken when each is done at once, up to rest or the end."""
    steps: list[Step] = []
    while state is not State.REMOVED:
        row = TABLE[state, goal]
        steps.append(row.step)
        if row.step is Step.REST:
            break
        state = after(row, Outcome.DONE)
    return steps


def test_every_living_state_has_a_step_for_every_goal() -> None:
    assert set(TABLE) == set(product(LIVING, Goal))


def test_ztunnel_listens_before_the_kernel_captures() -> None:
    assert walk(State.WAITING, Goal.ENROL) == [Step.LISTEN, Step.CAPTURE, Step.REST]


@pytest.mark.parametrize("state", [State.WAITING, State.ADDING, State.CAPTURED, State.REFUSED, State.FAILED])
def test_capture_ends_before_peers_converge_and_the_rest_is_let_go_after(state: State) -> None:
    assert walk(state, Goal.UNENROL) == [Step.UNCAPTURE, Step.CONVERGE, Step.RELEASE]


@pytest.mark.parametrize("state", LIVING)
def test_a_pod_that_is_gone_is_released_at_once(state: State) -> None:
    assert walk(state, Goal.GONE) == [Step.RELEASE]


@pytest.mark.parametrize("state", [State.DRAINING, State.DRAINED, State.FAILED, State.REFUSED])
def test_a_pod_comes_back_from_every_state(state: State) -> None:
    assert walk(state, Goal.ENROL) == [Step.LISTEN, Step.CAPTURE, Step.REST]


@pytest.mark.parametrize(("state", "goal"), list(TABLE))
def test_what_goes_wrong_is_named(state: State, goal: Goal) -> None:
    assert after(TABLE[state, goal], Outcome.FAILED) is State.FAILED
    assert after(TABLE[state, goal], Outcome.REFUSED) is State.REFUSED
