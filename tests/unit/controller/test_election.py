"""The election on a scripted API server, with clocks that the test moves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from controller.election import LEASE, Election, Times
from mesh.aio import Background
from mesh.kube.api import Api
from tests.support.waiting import until
from tests.unit.controller.fake_api import Answer, Document, FakeApi, Request, refusal

NAMESPACE = "culvert-system"
TIMES = Times(duration_s=15.0, renew_deadline_s=10.0, retry_s=0.01, request_s=0.5)
LEASES = "/apis/coordination.k8s.io/v1/leases"


class Clock:
    """Monotonic seconds of one controller."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


@contextlib.asynccontextmanager
async def standing(api: Api, clock: Clock, name: str) -> AsyncIterator[tuple[Election, list[bool]]]:
    turns: list[bool] = []
    election = Election(api, NAMESPACE, name, TIMES, clock)
    election.on_change = turns.append
    async with Background() as tasks:
        tasks.start(election.run(), name)
        yield election, turns


def lease(fake: FakeApi) -> Document:
    return fake.objects[LEASES][f"{NAMESPACE}/{LEASE}"]


def blocked(request: Request) -> Answer | None:
    return refusal(503) if "leases" in request.path else None


async def some_rounds(fake: FakeApi) -> None:
    count = len(fake.requests)
    await until(lambda: len(fake.requests) >= count + 6)


def test_one_of_two_leads_and_hands_over_when_it_ends(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with fake.serving(tmp_path) as api, contextlib.AsyncExitStack() as first:
            one, turns = await first.enter_async_context(standing(api, Clock(5.0), "one"))
            await until(lambda: one.is_leader)
            async with standing(api, Clock(9000.0), "two") as (two, _):
                await some_rounds(fake)
                assert not two.is_leader
                assert two.holder == "one"
                await first.aclose()
                assert turns == [True, False]
                assert not one.is_leader
                await until(lambda: two.is_leader)  # at once: no clock has moved
                assert lease(fake)["spec"]["leaseTransitions"] == 1

    run(test)


def test_a_leader_that_cannot_renew_stops_by_itself_before_anybody_else_may_begin(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        fake = FakeApi()
        clock = Clock(100.0)
        async with fake.serving(tmp_path) as api, standing(api, clock, "one") as (one, turns):
            await until(lambda: turns == [True])
            fake.script = blocked
            await some_rounds(fake)
            clock.now += 9.0
            assert one.is_leader
            clock.now += 1.1
            assert not one.is_leader  # without anybody having looked at anything
            await until(lambda: turns == [True, False])
            fake.script = lambda request: None
            await until(lambda: turns == [True, False, True])

    run(test)
    # Once, however often it was tried.
    assert [record.levelname for record in caplog.records if "503" in record.message] == ["WARNING"]


def test_a_lease_is_taken_only_when_it_was_seen_unchanged_for_its_whole_time(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        mine = Clock(100.0)
        async with fake.serving(tmp_path) as api:
            async with standing(api, Clock(1.0), "one") as (one, _):
                await until(lambda: one.is_leader)
                fake.script = blocked  # it dies without a word
            kept = lease(fake)
            # Its clock was an hour ahead, or behind: that is nobody's business.
            kept["spec"]["renewTime"] = "2031-01-01T00:00:00.000000Z"
            fake.script = lambda request: None
            async with standing(api, mine, "two") as (two, _):
                await some_rounds(fake)
                mine.now += 14.9
                await some_rounds(fake)
                assert not two.is_leader
                fake.put(kept)  # a sign of life
                await some_rounds(fake)
                mine.now += 14.9
                await some_rounds(fake)
                assert not two.is_leader
                mine.now += 0.2
                await until(lambda: two.is_leader)

    run(test)


def test_of_two_that_take_a_free_lease_at_once_one_leads(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with (
            fake.serving(tmp_path) as api,
            standing(api, Clock(0.0), "one") as (one, _),
            standing(api, Clock(0.0), "two") as (two, _),
        ):
            await until(lambda: one.is_leader or two.is_leader)
            for _ in range(5):
                await some_rounds(fake)
                assert one.is_leader != two.is_leader

    run(test)


def test_a_lease_that_somebody_else_has_taken_ends_the_leadership_as_soon_as_it_is_seen(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with fake.serving(tmp_path) as api, standing(api, Clock(0.0), "one") as (one, turns):
            await until(lambda: one.is_leader)
            stolen = {**lease(fake), "spec": {**lease(fake)["spec"], "holderIdentity": "thief"}}
            fake.put(stolen)
            await until(lambda: turns == [True, False])
            assert one.holder == "thief"

    run(test)


@pytest.mark.slow
def test_a_slow_server_makes_no_mesh_without_a_leader(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.delay_s = 0.3  # as 3 s with the usual times
        times = Times(duration_s=1.5, renew_deadline_s=1.0, retry_s=0.2, request_s=0.4)
        async with fake.serving(tmp_path) as api, Background() as tasks:
            one = Election(api, NAMESPACE, "one", times)
            tasks.start(one.run(), "one")
            await until(lambda: one.is_leader, 3)
            for _ in range(60):
                await asyncio.sleep(0.05)
                assert one.is_leader

    run(test)


def test_a_leader_renews_with_one_request(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with fake.serving(tmp_path) as api, standing(api, Clock(0.0), "one") as (one, _):
            await until(lambda: one.is_leader)
            await some_rounds(fake)
            assert {request.method for request in fake.requests[4:]} == {"PUT"}

    run(test)


def test_a_lease_that_comes_back_by_itself_is_taken_as_late_as_anybody_elses(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        clock = Clock(0.0)
        async with fake.serving(tmp_path) as api, standing(api, clock, "one") as (one, turns):
            await until(lambda: one.is_leader)
            backup = fake.save()
            fake.put({**lease(fake), "spec": {**lease(fake)["spec"], "holderIdentity": "two"}})
            await until(lambda: turns == [True, False])
            fake.restore(backup)  # of the API server's storage; two believes for a while yet that it leads
            await some_rounds(fake)
            assert not one.is_leader
            clock.now += 15.1
            await until(lambda: one.is_leader)

    run(test)


def forget(fake: FakeApi) -> None:
    del fake.objects[LEASES][f"{NAMESPACE}/{LEASE}"]


def test_a_lease_that_somebody_deletes_is_made_anew_by_who_leads_and_by_nobody_else(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with (
            fake.serving(tmp_path) as api,
            standing(api, Clock(0.0), "one") as (one, turns),
        ):
            await until(lambda: one.is_leader)
            async with standing(api, Clock(100.0), "two") as (two, others):
                await until(lambda: two.holder == "one")
                for _ in range(5):
                    forget(fake)
                    await some_rounds(fake)
                    await until(lambda: bool(fake.objects[LEASES]))
                    assert lease(fake)["spec"]["holderIdentity"] == "one"
            assert (turns, others) == ([True], [])

    run(test)


def test_a_lease_that_is_gone_is_free_when_its_holder_must_have_noticed(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        mine = Clock(100.0)
        async with fake.serving(tmp_path) as api:
            async with standing(api, Clock(0.0), "one") as (one, _):
                await until(lambda: one.is_leader)
                fake.script = blocked  # cut off, and may believe for a while that it leads
            async with standing(api, mine, "two") as (two, _):
                fake.script = lambda request: None
                await until(lambda: two.holder == "one")
                mine.now += 14.0
                forget(fake)
                await some_rounds(fake)
                mine.now += 14.9
                await some_rounds(fake)
                assert not two.is_leader
                mine.now += 0.2
                await until(lambda: two.is_leader)

    run(test)


def test_a_server_that_does_not_answer_is_no_renewal(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        clock = Clock(0.0)
        async with fake.serving(tmp_path) as api, standing(api, clock, "one") as (one, _):
            await until(lambda: one.is_leader)
            fake.script = lambda request: Answer(hang=True)
            await asyncio.sleep(0.1)
            clock.now += 10.1
            await asyncio.sleep(0.6)  # a request's time
            assert not one.is_leader
            fake.script = lambda request: None

    run(test)
