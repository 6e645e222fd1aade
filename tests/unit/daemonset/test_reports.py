import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from daemonset import reports as module
from daemonset.pods import Refusal, RefusalKind
from daemonset.reports import ControllerAway, Reports, ReportStream
from mesh.aio import Background
from mesh.wire import agent_pb2 as wire
from tests.support.waiting import until
from tests.unit.daemonset.fakes import pod, settle

Names = list[tuple[int, list[str]]]


class FakeController:
    """A controller whose streams a test answers and ends."""

    def __init__(self) -> None:
        self.away = ""
        self.streams: list[FakeStream] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[ReportStream]:
        if self.away:
            raise ControllerAway(self.away)
        self.streams.append(FakeStream())
        yield self.streams[-1]


class FakeStream:
    def __init__(self) -> None:
        self.heard: Names = []
        self.refused: list[dict[str, str]] = []
        self.answers: asyncio.Queue[wire.CaptureAck | ControllerAway] = asyncio.Queue()
        self.stale = False

    async def write(self, report: wire.CaptureReport) -> None:
        assert report.node == "n1"
        self.refused = [
            {"pod": f"{one.namespace}/{one.name}", "reason": one.reason, "message": one.message}
            for one in report.refused
        ]
        self.heard.append((report.generation, sorted(pod.name for pod in report.pods)))

    async def read(self) -> wire.CaptureAck:
        answer = await self.answers.get()
        if isinstance(answer, ControllerAway):
            raise answer
        return answer

    def is_stale(self) -> bool:
        return self.stale

    async def acknowledge(self, generation: int) -> None:
        self.answers.put_nowait(wire.CaptureAck(generation=generation))
        await settle()

    def end(self) -> None:
        self.answers.put_nowait(ControllerAway("gone"))


def play(body: Callable[[FakeController, Reports], Awaitable[None]], *, run_at_once: bool = True) -> None:
    async def run() -> None:
        controller = FakeController()
        reports = Reports("n1", controller.open)
        async with Background() as background, asyncio.timeout(5):
            if run_at_once:
                background.start(reports.run(), "reports")
                await settle()
            await body(controller, reports)

    asyncio.run(run())


def test_the_whole_set_goes_out_first_and_after_each_change() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        reports.put(pod("a"))
        await settle()
        reports.put(pod("b"))
        await settle()
        reports.remove("uid-a")
        await settle()
        assert controller.streams[0].heard == [(1, []), (2, ["a"]), (3, ["a", "b"]), (4, ["b"])]

    play(body)


def test_changes_between_two_turns_go_out_together_and_no_change_is_no_report() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        reports.put(pod("a"))
        reports.put(pod("b"))
        await settle()
        reports.put(pod("b"))
        assert not reports.remove("uid-c")
        await settle()
        assert controller.streams[0].heard == [(1, []), (2, ["a", "b"])]

    play(body)


def test_acknowledged_means_everything_said_until_then() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        (stream,) = controller.streams
        assert not reports.connected
        reports.put(pod("a"))
        first = reports.acknowledged()
        await settle()
        reports.remove("uid-a")
        second = reports.acknowledged()
        await settle()
        await stream.acknowledge(1)
        assert reports.connected
        assert (first.done(), second.done()) == (False, False)
        await stream.acknowledge(2)
        assert (first.done(), second.done()) == (True, False)
        await stream.acknowledge(3)
        assert second.done()
        assert reports.acknowledged().done()

    play(body)


def test_an_answer_may_skip_reports() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        reports.put(pod("a"))
        await settle()
        reports.put(pod("b"))
        waiting = reports.acknowledged()
        await settle()
        await controller.streams[0].acknowledge(3)
        assert waiting.done()

    play(body)


def test_a_new_stream_begins_with_the_whole_set_and_counts_anew() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        reports.put(pod("a"))
        await settle()
        await controller.streams[0].acknowledge(2)
        controller.streams[0].end()
        reports.remove("uid-a")
        reports.put(pod("b"))
        waiting = reports.acknowledged()
        await until(lambda: len(controller.streams) == 2)
        await settle()
        assert controller.streams[1].heard == [(1, ["b"])]
        assert not waiting.done()
        await controller.streams[1].acknowledge(1)
        assert waiting.done()

    play(body)


def test_a_controller_that_is_away_is_named_and_found_again() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        controller.away = "credential roots.pem: No such file or directory"
        controller.streams[0].end()
        await until(lambda: reports.fault == controller.away)
        reports.put(pod("a"))
        controller.away = ""
        await until(lambda: len(controller.streams) == 2)
        await settle()
        assert controller.streams[1].heard == [(1, ["a"])]

    play(body)


def test_an_answer_to_nothing_ends_the_stream() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        await controller.streams[0].acknowledge(7)
        await until(lambda: len(controller.streams) == 2)
        assert "7" in reports.fault

    play(body)


def test_renewed_credentials_make_a_new_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CREDENTIALS_CHECK_S", 0.01)

    async def body(controller: FakeController, reports: Reports) -> None:
        reports_run = Background()
        async with reports_run:
            reports_run.start(reports.run(), "reports")
            await settle()
            await controller.streams[0].acknowledge(1)
            controller.streams[0].stale = True
            await until(lambda: len(controller.streams) == 2)

    play(body, run_at_once=False)


def test_pauses_between_tries_grow_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 14:
            raise asyncio.CancelledError

    async def body(controller: FakeController, reports: Reports) -> None:
        controller.away = "refused"
        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)
        with contextlib.suppress(asyncio.CancelledError):
            await reports.run()

    play(body, run_at_once=False)
    assert pauses[:3] == [0.01, 0.02, 0.04]
    assert pauses[-1] == module.BACKOFF_MAX_S


def test_an_agent_that_ends_is_not_kept_by_a_call_that_answers_its_cancellation_with_an_error() -> None:
    class Stubborn(FakeStream):
        async def read(self) -> wire.CaptureAck:
            try:
                return await super().read()
            except asyncio.CancelledError:
                raise ControllerAway("cancelled: locally") from None

    class Controller(FakeController):
        @contextlib.asynccontextmanager
        async def open(self) -> AsyncIterator[ReportStream]:
            yield Stubborn()

    async def run() -> None:
        task = asyncio.get_running_loop().create_task(Reports("n1", Controller().open).run())
        await settle()
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2)
        assert done
        assert task.cancelled()

    asyncio.run(run())


def test_pods_that_cannot_be_enrolled_are_told_once_per_change() -> None:
    async def body(controller: FakeController, reports: Reports) -> None:
        await settle()
        (stream,) = controller.streams
        refused = [(pod("web"), Refusal(RefusalKind.PORT_IN_USE, "it listens on 15008"))]
        for _ in range(2):
            reports.refuse(list(refused))
            await settle()
        assert stream.refused == [{"pod": "shop/web", "reason": "port_in_use", "message": "it listens on 15008"}]
        assert [generation for generation, _ in stream.heard] == [1, 2]
        reports.refuse([])
        await settle()
        assert stream.refused == []

    play(body)
