"""The writer of conditions between a scripted API server and an index, over the real source."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.index.index import Index
from controller.index.objects import Change
from controller.sources.base import Fault
from controller.sources.kubernetes import KubernetesSource
from controller.status.writer import StatusWriter
from mesh.aio import Background
from mesh.kube.backoff import Backoff
from mesh.kube.follow import Pace
from tests.support.waiting import until
from tests.unit.controller.fake_api import Document, FakeApi, Request, refusal
from tests.unit.controller.nodes import policy

PACE = Pace(shortest_backoff_s=0.01, longest_backoff_s=0.05, silence_s=5.0, shortest_watch_s=0.0)
DENY = {"action": "DENY", "rules": [{}]}


@dataclass
class Leader:
    is_leader: bool = True


class Stage:
    """The part of the controller that joins them. Implements the source's Sink."""

    def __init__(self, api: Any, leader: Leader) -> None:
        self.index = Index("culvert-system")
        self.source = KubernetesSource(api, PACE, patience_s=0.1)
        self.writer = StatusWriter(api, self.source, self.index, leader, backoff=Backoff(0.01, 0.02))
        self.is_open = False

    def apply(self, changes: Sequence[Change]) -> None:
        self.index.apply(changes)
        self.is_open = True
        self.writer.wake()

    def set_faults(self, faults: Sequence[Fault]) -> None:
        self.writer.set_faults(faults)

    def look_again(self) -> None:
        self.writer.wake()


@contextlib.asynccontextmanager
async def staged(fake: FakeApi, tmp_path: Path, leader: Leader | None = None) -> AsyncIterator[Stage]:
    async with fake.serving(tmp_path) as api, Background() as tasks:
        stage = Stage(api, leader or Leader())
        tasks.start(stage.writer.run(), "writer")
        tasks.start(stage.source.run(stage), "source")
        await until(lambda: stage.is_open)
        yield stage


def make_fake(*documents: Document) -> FakeApi:
    fake = FakeApi()
    fake.define("AuthorizationPolicy", "PeerAuthentication")
    fake.put(*documents)
    return fake


def accepted(fake: FakeApi, document: Document) -> dict[str, Any]:
    conditions = fake.get(document).get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "Accepted"), {})


def patched(fake: FakeApi) -> list[Request]:
    return [request for request in fake.requests if request.method == "PATCH"]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_policies_get_their_condition_once(tmp_path: Path) -> None:
    async def test() -> None:
        one, two = policy("one", DENY), policy("two", {"action": "DENNY"})
        fake = make_fake(one, two)
        async with staged(fake, tmp_path) as stage:
            await until(lambda: accepted(fake, one).get("status") == "True")
            await until(lambda: "spec.action" in accepted(fake, two).get("message", ""))
            await stage.source.catch_up()
            await asyncio.sleep(0.05)
            assert len(patched(fake)) == 2
            assert {request.path.rpartition("/")[2] for request in patched(fake)} == {"status"}
            assert {request.query["fieldManager"] for request in patched(fake)} == {"culvert-controller"}

    run(test)


def test_a_policy_that_changes_is_observed_in_its_new_generation(tmp_path: Path) -> None:
    async def test() -> None:
        one = policy("one", DENY)
        fake = make_fake(one)
        async with staged(fake, tmp_path):
            await until(lambda: accepted(fake, one).get("observedGeneration") == 1)
            broken = policy("one", {"action": "DENY", "rules": [{"form": []}]})
            fake.put({**broken, "status": fake.get(one)["status"]})
            await until(lambda: accepted(fake, one).get("observedGeneration") == 2)
            assert accepted(fake, one)["status"] == "False"
            assert "spec.rules[0].form" in accepted(fake, one)["message"]
            assert "stays in force" in accepted(fake, one)["message"]
            assert '"action":"DENY"' in fake.get(one)["status"]["lastUnderstood"]
            fake.put({**policy("one", {"action": "ALLOW"}), "status": fake.get(one)["status"]})
            await until(lambda: accepted(fake, one).get("observedGeneration") == 3)
            assert "lastUnderstood" not in fake.get(one)["status"]

    run(test)


def test_who_does_not_lead_writes_nothing_until_it_does(tmp_path: Path) -> None:
    async def test() -> None:
        one = policy("one", DENY)
        fake = make_fake(one)
        leader = Leader(is_leader=False)
        async with staged(fake, tmp_path, leader) as stage:
            await stage.source.catch_up()
            await asyncio.sleep(0.05)
            assert patched(fake) == []
            leader.is_leader = True
            stage.writer.wake()
            await until(lambda: bool(accepted(fake, one)))

    run(test)


def test_leadership_that_is_lost_ends_writing_in_the_middle(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(*(policy(f"p{number}", DENY) for number in range(40)))
        leader = Leader()

        def script(request: Request) -> None:
            if len(patched(fake)) >= 8:
                leader.is_leader = False

        fake.script = script
        async with staged(fake, tmp_path, leader) as stage:
            await until(lambda: not leader.is_leader)
            await stage.source.catch_up()
            assert len(patched(fake)) <= 16

    run(test)


def test_a_conflict_waits_for_the_version_that_caused_it_and_loses_no_condition(tmp_path: Path) -> None:
    async def test() -> None:
        one = policy("one", DENY)
        fake = make_fake(one)
        other = {"type": "Other", "status": "True"}

        def script(request: Request) -> None:
            if request.method == "PATCH" and len(patched(fake)) == 1:  # somebody is faster
                fake.put({**policy("one", DENY), "status": {"conditions": [other]}})

        fake.script = script
        async with staged(fake, tmp_path):
            await until(lambda: bool(accepted(fake, one)))
            assert other in fake.get(one)["status"]["conditions"]
            assert len(patched(fake)) == 2

    run(test)


def test_a_server_that_fails_is_asked_again_and_one_that_refuses_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        one = policy("one", DENY)
        fake = make_fake(one)
        fake.script = lambda request: refusal(503) if request.method == "PATCH" else None
        async with staged(fake, tmp_path):
            await until(lambda: len(patched(fake)) > 2)
            fake.script = lambda request: refusal(404) if request.method == "PATCH" else None
            await asyncio.sleep(0.1)
            count = len(patched(fake))
            await asyncio.sleep(0.1)
            assert len(patched(fake)) == count

    run(test)
