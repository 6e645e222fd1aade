import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from daemonset.enrolment import REFUSED_RETRY_S, Worker
from daemonset.lifecycle import Goal, State
from daemonset.pods import Refusal, RefusalKind
from mesh.aio import Background
from mesh.zds import PORT_IN_USE
from tests.unit.daemonset.fakes import PACE, FakeWorld, null_fd, open_descriptors, pod, settle

Trace = Callable[[FakeWorld, Worker], Awaitable[None]]


@asynccontextmanager
async def working(fake: FakeWorld, *, adopted: bool | None = None, goal: Goal = Goal.ENROL) -> AsyncIterator[Worker]:
    worker = Worker(pod(), null_fd(), 77, fake.world, PACE)
    if adopted is not None:
        worker.adopt(captured=adopted)
    worker.aim(goal)
    async with Background() as background:
        background.run_once(worker.run(), "pod")
        await settle()
        yield worker


def state_of(worker: Worker) -> State:
    """Read anew: the type checker believes that a state which was compared stays."""
    return worker.state


def trace(body: Trace, fake: FakeWorld | None = None, *, adopted: bool | None = None, goal: Goal = Goal.ENROL) -> None:
    async def run() -> None:
        world = fake or FakeWorld()
        async with working(world, adopted=adopted, goal=goal) as worker:
            await body(world, worker)

    asyncio.run(run())


def test_enrolment_listens_captures_then_reports() -> None:
    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert fake.log == ["listen web", "capture 77 10.0.0.5", "report +web"]
        assert (worker.state, worker.captured, worker.pre_enrolment) == (State.CAPTURED, True, 3)

    trace(body)


def test_without_a_ztunnel_nothing_is_captured() -> None:
    fake = FakeWorld()
    fake.has_ztunnel = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert fake.take_log() == ["listen web"]
        assert (worker.state, worker.reason) == (State.WAITING, "waiting for ztunnel")
        await fake.answer()
        assert fake.log == ["capture 77 10.0.0.5", "report +web"]

    trace(body, fake)


def test_unenrolment_drains_in_the_order_of_the_design() -> None:
    fake = FakeWorld()
    fake.controller_answers = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        fake.take_log()
        worker.aim(Goal.UNENROL)
        await settle()
        assert fake.take_log() == ["uncapture 77", "report -uid-web", "acknowledged?"]
        assert (worker.state, worker.captured) == (State.DRAINING, False)
        await fake.answer()
        assert fake.take_log() == []  # the controller knows, peers do not yet
        await fake.clock.advance(PACE.settle_s - 0.1)
        assert fake.take_log() == []
        await fake.clock.advance(0.2)
        assert fake.take_log() == ["forget uid-web", "release 77"]
        assert worker.state is State.REMOVED

    trace(body, fake)


def test_a_drain_waits_for_a_controller_that_is_away_however_long() -> None:
    fake = FakeWorld()
    fake.controller_answers = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        worker.aim(Goal.UNENROL)
        await settle()
        await fake.clock.advance(86_400)
        assert worker.state is State.DRAINING
        assert "release 77" not in fake.log

    trace(body, fake)


def test_a_pod_that_is_wanted_again_while_draining_is_captured_again_without_a_gap_in_ztunnel() -> None:
    fake = FakeWorld()
    fake.controller_answers = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        worker.aim(Goal.UNENROL)
        await settle()
        fake.take_log()
        worker.aim(Goal.ENROL)
        await settle()
        assert fake.take_log() == ["listen web", "capture 77 10.0.0.5", "report +web"]
        assert worker.state is State.CAPTURED

    trace(body, fake)


@pytest.mark.parametrize("goal", [Goal.ENROL, Goal.UNENROL])
def test_a_pod_that_is_gone_is_released_without_waiting_for_anybody(goal: Goal) -> None:
    fake = FakeWorld()
    fake.controller_answers = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        worker.aim(goal)
        await settle()
        fake.has_ztunnel = False
        fake.take_log()
        worker.aim(Goal.GONE)
        await settle()
        assert fake.log[0] == "forget uid-web"
        assert fake.log[-1] == "release 77"
        assert worker.state is State.REMOVED

    trace(body, fake)


def test_a_pod_that_is_no_longer_wanted_before_ztunnel_came_leaves_nothing() -> None:
    fake = FakeWorld()
    fake.has_ztunnel = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        worker.aim(Goal.UNENROL)
        await settle()
        await fake.answer()
        assert fake.log == ["listen web", "uncapture 77", "forget uid-web", "release 77"]
        assert not fake.wanted
        assert fake.asked["uid-web"].cancelled()

    trace(body, fake)


def test_a_lost_ztunnel_leaves_the_pod_captured_and_reported() -> None:
    async def body(fake: FakeWorld, worker: Worker) -> None:
        fake.take_log()
        fake.has_ztunnel = False
        worker.lost("no ztunnel is connected")
        await settle()
        assert fake.take_log() == ["listen web"]
        assert (worker.state, worker.captured, worker.reason) == (State.WAITING, True, "no ztunnel is connected")
        assert fake.reported == {"uid-web"}
        await fake.answer()
        assert fake.log == ["capture 77 10.0.0.5", "report +web"]
        assert (worker.state, worker.reason) == (State.CAPTURED, "")

    trace(body)


def test_a_pod_that_listens_on_a_mesh_port_is_refused_and_asked_again() -> None:
    fake = FakeWorld()
    fake.listen_error = f"{PORT_IN_USE}: 15008"

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert (worker.state, worker.refused) == (State.REFUSED, RefusalKind.PORT_IN_USE)
        assert "15008" in worker.reason
        assert not fake.reported
        fake.listen_error = ""
        await fake.clock.advance(REFUSED_RETRY_S)
        assert (worker.state, worker.refused, worker.reason) == (State.CAPTURED, None, "")

    trace(body, fake)


def test_a_failing_step_is_tried_again_with_growing_pauses_up_to_a_limit() -> None:
    fake = FakeWorld()
    fake.kernel_fault = "map pods of node n1 is full"

    async def body(fake: FakeWorld, worker: Worker) -> None:
        for _ in range(5):
            assert (worker.state, worker.reason) == (State.FAILED, "map pods of node n1 is full")
            await fake.clock.advance(60)
        assert fake.clock.asked == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
        assert not worker.captured
        fake.kernel_fault = ""
        await fake.clock.advance(60)
        assert worker.state is State.CAPTURED

    trace(body, fake)


def test_an_unknown_error_of_ztunnel_is_a_failure_with_its_words() -> None:
    fake = FakeWorld()
    fake.listen_error = "too many pods"

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert (worker.state, worker.reason) == (State.FAILED, "ztunnel: too many pods")

    trace(body, fake)


def test_a_change_of_goal_cuts_the_pause_after_a_failure() -> None:
    fake = FakeWorld()
    fake.kernel_fault = "no"

    async def body(fake: FakeWorld, worker: Worker) -> None:
        fake.kernel_fault = ""
        worker.aim(Goal.GONE)
        await settle()
        assert worker.state is State.REMOVED

    trace(body, fake)


def test_a_release_that_fails_is_tried_until_it_succeeds() -> None:
    async def body(fake: FakeWorld, worker: Worker) -> None:
        fake.kernel_fault = "busy"
        worker.aim(Goal.GONE)
        await settle()
        assert state_of(worker) is State.FAILED
        fake.kernel_fault = ""
        await fake.clock.advance(10)
        assert state_of(worker) is State.REMOVED

    trace(body)


def test_a_namespace_that_another_set_holds_is_refused_before_anything_is_done() -> None:
    fake = FakeWorld()
    fake.refusal = Refusal(RefusalKind.OTHER_SET, "in the pods of n2")

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert (worker.state, worker.refused, worker.reason) == (
            State.REFUSED,
            RefusalKind.OTHER_SET,
            "in the pods of n2",
        )
        assert fake.log == []  # ztunnel was not even asked

    trace(body, fake)


def test_another_address_is_captured_too_and_other_labels_change_nothing() -> None:
    async def body(fake: FakeWorld, worker: Worker) -> None:
        fake.take_log()
        worker.aim(Goal.ENROL, pod(app="x"))
        await settle()
        assert fake.take_log() == []
        worker.aim(Goal.ENROL, pod(addresses=("10.0.0.5", "fd00::5")))
        await settle()
        assert fake.take_log() == ["listen web", "capture 77 10.0.0.5 fd00::5", "report +web"]

    trace(body)


def test_an_adopted_pod_is_reported_before_any_ztunnel_has_come() -> None:
    fake = FakeWorld()
    fake.has_ztunnel = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert fake.log == ["report +web", "listen web"]
        assert worker.captured
        assert "uid-web" in fake.wanted

    trace(body, fake, adopted=True)


def test_a_pod_found_half_drained_is_drained_to_the_end_and_waits_for_the_controller() -> None:
    fake = FakeWorld()
    fake.controller_answers = False

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert fake.take_log() == ["uncapture 77", "acknowledged?"]
        assert "uid-web" in fake.wanted  # ztunnel goes on listening on 15008
        await fake.answer()
        await fake.clock.advance(PACE.settle_s)
        assert fake.log == ["forget uid-web", "release 77"]

    trace(body, fake, adopted=False, goal=Goal.UNENROL)


def test_connections_from_before_are_counted_once_and_a_count_that_fails_hinders_nothing() -> None:
    fake = FakeWorld()
    fake.older_connections = PermissionError(1, "no")

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert (worker.state, worker.pre_enrolment) == (State.CAPTURED, None)

    trace(body, fake)


def test_the_descriptor_is_closed_with_the_worker() -> None:
    before = open_descriptors()

    async def body(fake: FakeWorld, worker: Worker) -> None:
        worker.aim(Goal.GONE)
        await settle()

    trace(body)
    trace(lambda fake, worker: settle())  # cancelled: the agent ends
    assert open_descriptors() == before


def test_a_guard_is_made_with_the_capture() -> None:
    fake = FakeWorld()
    fake.unguarded = "no end"

    async def body(fake: FakeWorld, worker: Worker) -> None:
        assert (worker.captured, fake.guards, worker.unguarded) == (True, 1, "no end")
        fake.unguarded = ""
        worker.guard()
        assert (fake.guards, worker.unguarded) == (2, "")

    trace(body, fake)
