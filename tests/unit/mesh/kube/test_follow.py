"""A followed collection against a scripted server: whatever happens, what is known ends up as what is there."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh.aio import Background
from mesh.kube.api import Selection
from mesh.kube.errors import NotFound
from mesh.kube.follow import Follow, Pace, is_before
from mesh.kube.resources import AUTHORIZATION_POLICIES, PODS
from tests.support.waiting import until
from tests.unit.controller.fake_api import Answer, Document, FakeApi, Request, refusal
from tests.unit.controller.nodes import pod

PACE = Pace(shortest_backoff_s=0.01, longest_backoff_s=0.05, silence_s=5.0, shortest_watch_s=0.0, page_size=2)


class Known:
    """What a follower knows, and how often it was told everything."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.lists = 0
        self.told: list[tuple[bool, str]] = []

    def listed(self, items: Sequence[Document]) -> None:
        self.lists += 1
        self.objects = {item["metadata"]["name"]: item["status"]["podIPs"][0]["ip"] for item in items}

    def changed(self, items: Sequence[tuple[bool, Document]]) -> None:
        for is_there, item in items:
            name = item["metadata"]["name"]
            self.told.append((is_there, name))
            if is_there:
                self.objects[name] = item["status"]["podIPs"][0]["ip"]
            else:
                self.objects.pop(name)


@contextlib.asynccontextmanager
async def following(fake: FakeApi, tmp_path: Path, pace: Pace = PACE) -> AsyncIterator[tuple[Known, Follow[Document]]]:
    known = Known()
    async with fake.serving(tmp_path) as api, Background() as tasks:
        follow = Follow(api, Selection(PODS), lambda item: item, known, pace)
        tasks.run_once(follow.run(), "follow")
        yield known, follow


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_what_is_there_comes_in_pages_and_then_what_changes(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(*(pod(f"p{number}", f"10.0.0.{number}") for number in range(1, 6)))
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: len(known.objects) == 5)
            assert len(fake.lists("pods")) == 3
            assert known.lists == 1
            fake.put(pod("p6", "10.0.0.6"), pod("p1", "10.0.1.1"))
            fake.delete(pod("p2", ""))
            await until(lambda: known.objects.get("p1") == "10.0.1.1" and "p2" not in known.objects)
            assert known.told == [(True, "p6"), (True, "p1"), (False, "p2")]
            assert known.lists == 1

    run(test)


def test_a_watch_that_breaks_goes_on_from_its_last_event(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: len(fake.watches()) == 1)
            fake.put(pod("p1", "10.0.0.1"))
            await until(lambda: "p1" in known.objects)
            fake.drop_connections()
            fake.put(pod("p2", "10.0.0.2"))
            await until(lambda: "p2" in known.objects)
            assert known.lists == 1
            assert known.told == [(True, "p1"), (True, "p2")]
            assert fake.watches()[-1].query["resourceVersion"] == "101"

    run(test)


def test_a_bookmark_moves_the_place_to_go_on_from(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.version = 500
        bookmark = b'{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"600"}}}\n'

        def script(request: Request) -> Answer | None:
            if request.is_watch and len(fake.watches()) == 1:
                fake.version = 700
                return Answer(raw=bookmark, cut=True)
            return None

        fake.script = script
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: len(fake.watches()) == 2)
            assert [request.query["resourceVersion"] for request in fake.watches()] == ["500", "600"]
            assert known.lists == 1

    run(test)


def test_a_line_that_is_cut_counts_for_nothing_and_those_before_it_count(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        watches = 0

        def script(request: Request) -> Answer | None:
            nonlocal watches
            if not request.is_watch:
                return None
            watches += 1
            if watches > 1:
                return None
            fake.put(pod("p1", "10.0.0.1"), pod("p2", "10.0.0.2"))
            lines = [json.dumps({"type": kind, "object": item}) for _, kind, _, item in fake.history]
            return Answer(raw=f"{lines[0]}\n{lines[1][:60]}".encode(), cut=True)

        fake.script = script
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: "p2" in known.objects)
            assert known.told == [(True, "p1"), (True, "p2")]
            assert fake.watches()[1].query["resourceVersion"] == "101"
            assert known.lists == 1

    run(test)


@pytest.mark.parametrize(
    "garbage",
    [
        b"not json\n",
        b"[]\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"ADDED","object":{"metadata":{}}}\n',
        b'"x"\n',
        b"null\n",
    ],
)
def test_garbage_in_a_watch_ends_it_and_nothing_else(tmp_path: Path, garbage: bytes) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: Answer(raw=garbage) if request.is_watch and len(fake.watches()) == 1 else None
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: len(fake.watches()) == 2)
            fake.put(pod("p1", "10.0.0.1"))
            await until(lambda: "p1" in known.objects)

    run(test)


def test_lost_history_is_listed_again_as_a_whole(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(pod("p1", "10.0.0.1"), pod("p2", "10.0.0.2"))
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: len(known.objects) == 2)
            fake.script = lambda request: refusal(500) if request.is_watch else None
            fake.drop_connections()
            fake.delete(pod("p1", ""))
            fake.put(pod("p3", "10.0.0.3"))
            fake.floor = fake.version = 300
            fake.script = lambda request: None
            await until(lambda: set(known.objects) == {"p2", "p3"})
            assert known.lists == 2
            assert known.told == []

    run(test)


def test_history_that_is_lost_between_pages_begins_the_list_again_in_the_end_as_one_page(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(*(pod(f"p{number}", f"10.0.0.{number}") for number in range(1, 6)))
        fake.script = lambda request: refusal(410) if "continue" in request.query else None
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: len(known.objects) == 5)
            assert known.lists == 1
            assert [request.query.get("limit") for request in fake.lists("pods")][-1] is None

    run(test)


def test_a_storage_that_was_restored_is_seen_although_the_server_would_say_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(pod("p1", "10.0.0.1"))
        saved = fake.save()
        async with following(fake, tmp_path) as (known, _):
            await until(lambda: "p1" in known.objects)
            fake.put(*(pod(f"q{number}", f"10.0.1.{number}") for number in range(1, 10)))
            await until(lambda: "q9" in known.objects)
            fake.restore(saved)
            fake.drop_connections()
            await until(lambda: set(known.objects) == {"p1"})
            fake.put(pod("p2", "10.0.0.2"))
            await until(lambda: "p2" in known.objects)

    run(test)


def test_an_event_of_an_earlier_version_is_a_history_that_went_back(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(pod("p1", "10.0.0.1"))
        old = fake.save()
        async with following(fake, tmp_path) as (known, _):
            fake.put(*(pod(f"q{number}", f"10.0.1.{number}") for number in range(1, 10)))
            await until(lambda: "q9" in known.objects)
            fake.objects["/api/v1/pods"] = old[1]["/api/v1/pods"]
            fake.version = old[0]
            fake.put(pod("p2", "10.0.0.2"))  # told on the open watch, under a number that was used before
            fake.history[-1] = (10_000, *fake.history[-1][1:])
            await until(lambda: set(known.objects) == {"p1", "p2"})

    run(test)


@pytest.mark.parametrize("status", [429, 500, 503, 401, 403])
def test_a_server_that_refuses_is_asked_again_and_says_why(tmp_path: Path, status: int) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(pod("p1", "10.0.0.1"))
        fake.script = lambda request: refusal(status, "not now")
        async with following(fake, tmp_path) as (known, follow):
            await until(lambda: len(fake.requests) >= 3)
            assert "not now" in follow.standing.fault
            assert known.lists == 0
            fake.script = lambda request: None
            await until(lambda: "p1" in known.objects)
            assert follow.standing.fault == ""

    run(test)


def test_retry_after_is_obeyed(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: refusal(429, Retry_After="1") if len(fake.requests) == 1 else None
        loop = asyncio.get_running_loop()
        async with following(fake, tmp_path) as (known, _):
            started = loop.time()
            await until(lambda: known.lists == 1)
            assert loop.time() - started >= 0.9

    run(test)


def test_a_server_that_is_away_for_long_is_listed_anew(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(pod("p1", "10.0.0.1"))
        pace = Pace(0.01, 0.05, 5.0, trust_s=0.3, shortest_watch_s=0.0)
        async with following(fake, tmp_path, pace) as (known, follow):
            await until(lambda: "p1" in known.objects)
            await fake.stop()
            await until(lambda: bool(follow.standing.fault))
            fake.put(pod("p2", "10.0.0.2"))
            await asyncio.sleep(0.4)
            await fake.start()
            await until(lambda: "p2" in known.objects)
            assert known.lists == 2
            assert known.told == []

    run(test)


def test_a_request_without_an_answer_is_made_again(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: Answer(hang=True) if request.is_watch and len(fake.watches()) == 1 else None
        pace = Pace(0.01, 0.05, silence_s=0.2, shortest_watch_s=0.0)
        async with following(fake, tmp_path, pace) as (known, _):
            await until(lambda: len(fake.watches()) >= 2)
            fake.put(pod("p1", "10.0.0.1"))
            await until(lambda: "p1" in known.objects)
            assert known.lists == 1

    run(test)


def test_a_watch_in_which_nothing_happens_is_opened_anew_and_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An API server that has just started sends no bookmarks for a collection that is at rest."""

    async def test() -> None:
        fake = FakeApi()
        pace = Pace(5.0, 5.0, silence_s=0.1, shortest_watch_s=0.0)  # a wait would be seen
        async with following(fake, tmp_path, pace) as (known, follow):
            await until(lambda: len(fake.watches()) >= 4, 4)
            assert not follow.standing.fault
            fake.put(pod("p1", "10.0.0.1"))
            await until(lambda: "p1" in known.objects, 4)
            assert known.lists == 1
            fake.script = lambda request: refusal(500)
            await until(lambda: bool(follow.standing.fault), 4)
            assert [record.levelname for record in caplog.records] == ["WARNING"]

    run(test)


def test_a_watch_that_has_lasted_is_a_new_beginning_for_waits(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: refusal(500) if request.is_watch and len(fake.watches()) < 10 else None
        pace = Pace(0.01, 0.8, silence_s=5.0, shortest_watch_s=0.0)
        async with following(fake, tmp_path, pace):
            await until(lambda: len(fake.watches()) == 10)  # by now a wait is 0.4 s or more
            await asyncio.sleep(1.0)
            began = time.monotonic()
            fake.drop_connections()
            await until(lambda: len(fake.watches()) == 11)
            assert time.monotonic() - began < 0.3

    run(test)


def test_a_watch_that_always_ends_at_once_does_not_make_a_storm(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: Answer(raw=b"") if request.is_watch else None
        pace = Pace(0.1, 0.2, silence_s=5.0, shortest_watch_s=1.0)
        async with following(fake, tmp_path, pace):
            await asyncio.sleep(0.6)
            assert 2 <= len(fake.watches()) <= 12

    run(test)


def test_a_caught_up_follower_knows_what_was_there_when_it_was_asked(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: Answer(hang=True) if request.is_watch else None  # nothing comes by itself
        async with following(fake, tmp_path) as (known, follow):
            await until(lambda: known.lists == 1)
            fake.put(pod("p1", "10.0.0.1"))
            await follow.catch_up()
            assert set(known.objects) == {"p1"}

    run(test)


def test_a_collection_that_may_vanish_ends_the_following_when_it_has(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with fake.serving(tmp_path) as api:
            selection = Selection(AUTHORIZATION_POLICIES)
            with pytest.raises(NotFound):
                await Follow(api, selection, lambda item: item, Known(), PACE, may_vanish=True).run()

    run(test)


def test_versions_that_are_no_numbers_are_not_compared() -> None:
    assert is_before("9", "10")
    assert not is_before("10", "9")
    assert not is_before("a", "b")
    assert not is_before("", "1")
