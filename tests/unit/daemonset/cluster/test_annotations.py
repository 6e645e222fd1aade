import asyncio
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemonset.cluster.annotations import Annotator
from daemonset.cluster.records import decode
from daemonset.lifecycle import Goal, State
from daemonset.pods import Refusal, RefusalKind
from tests.unit.controller.fake_api import FakeApi, Request, refusal
from tests.unit.daemonset.cluster.objects import UID, pod

CAPTURE = "culvert.io/capture"
ISTIO = "ambient.istio.io/redirection"


class Stage:
    """A source and an agent whose word a test sets; the source shows what the server has when told to."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.records: dict[str, Any] = {}
        self.workers: dict[str, Any] = {}
        self.refusals: dict[str, Any] = {}
        self.annotator: Any = None

    def worker(self, uid: str) -> Any:
        return self.workers.get(uid)

    def show(self) -> None:
        self.records = {one["metadata"]["uid"]: decode(one) for one in self.fake.objects["/api/v1/pods"].values()}

    def annotation(self, key: str = CAPTURE) -> str | None:
        found: str | None = self.fake.get(pod())["metadata"].get("annotations", {}).get(key)
        return found

    def patches(self) -> list[Request]:
        return [request for request in self.fake.requests if request.method == "PATCH"]


def worker(goal: Goal = Goal.ENROL, state: State = State.CAPTURED, captured: bool = True) -> Any:
    return SimpleNamespace(goal=goal, state=state, captured=captured)


def play(tmp_path: Path, act: Any, first: Any = None, *, for_istio: bool = False, **annotations: str) -> None:
    async def run() -> None:
        fake = FakeApi()
        document = pod()
        document["metadata"]["annotations"] = annotations
        fake.put(document)
        stage = Stage(fake)
        stage.show()
        stage.workers = {UID: first} if first else {}
        async with fake.serving(tmp_path) as api:
            parts: Any = stage  # as far as they count
            annotator = stage.annotator = Annotator(api, parts, parts, for_istio=for_istio)
            task = asyncio.get_running_loop().create_task(annotator.run())

            async def change() -> None:
                annotator.changed()
                await asyncio.sleep(0.1)

            try:
                await asyncio.sleep(0.05)
                await act(stage, change)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_pods_way_in_and_out_is_written_once_each(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        seen = []
        for state in (
            worker(state=State.WAITING, captured=False),
            worker(),
            worker(state=State.WAITING),  # ztunnel is away, the kernel goes on capturing
            worker(Goal.UNENROL, State.DRAINING, captured=False),
            None,
        ):
            stage.workers = {UID: state} if state else {}
            await change()
            stage.show()
            await change()
            seen.append(stage.annotation())
        assert seen == ["pending", "enabled", "enabled", "bypassing", None]
        assert len(stage.patches()) == 4

    play(tmp_path, act)


def test_what_stood_there_before_a_reboot_is_put_right(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        stage.workers = {UID: worker(state=State.WAITING, captured=False)}
        await change()
        assert stage.annotation() == "pending"

    play(tmp_path, act, **{CAPTURE: "enabled"})


@pytest.mark.parametrize(
    ("kind", "word"), [(RefusalKind.PORT_IN_USE, "bypassing"), (RefusalKind.NO_NAMESPACE, "pending")]
)
def test_one_that_cannot_be_enrolled_bypasses_and_one_that_only_starts_does_not(
    tmp_path: Path, kind: RefusalKind, word: str
) -> None:
    async def act(stage: Stage, change: Any) -> None:
        stage.refusals = {UID: Refusal(kind, "why")}
        await change()
        assert stage.annotation() == word

    play(tmp_path, act)


def test_pods_outside_the_mesh_are_left_alone_and_so_is_what_is_right(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        await change()
        await change()
        assert stage.patches() == []

    play(tmp_path, act, worker(), **{CAPTURE: "enabled"})
    play(tmp_path, act)


def test_the_patch_names_the_uid_so_that_a_successor_is_not_written_on(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        stage.workers = {UID: worker()}
        await change()
        (patch,) = stage.patches()
        assert patch.body["metadata"]["uid"] == UID

    play(tmp_path, act)


def test_a_server_that_refuses_is_asked_again_later(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        stage.fake.script = lambda request: refusal(503) if request.method == "PATCH" else None
        stage.workers = {UID: worker()}
        await change()
        assert stage.annotation() is None
        stage.fake.script = lambda request: None
        for _ in range(100):
            if stage.annotation() == "enabled":
                return
            await asyncio.sleep(0.02)
        raise AssertionError("never written")

    play(tmp_path, act)


def test_a_pod_that_has_ended_says_nothing_any_more(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        stage.workers = {UID: worker(Goal.GONE)}
        stage.records = {UID: dataclasses.replace(stage.records[UID], phase="Succeeded")}
        await change()
        assert stage.annotation() is None

    play(tmp_path, act, worker(), **{CAPTURE: "enabled"})


def test_istios_control_plane_reads_its_own_annotation_on_captured_pods_only(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        seen = []
        for state in (worker(state=State.WAITING, captured=False), worker(), worker(Goal.UNENROL, captured=False)):
            stage.workers = {UID: state}
            await change()
            stage.show()
            seen.append((stage.annotation(), stage.annotation(ISTIO)))
        assert seen == [("pending", None), ("enabled", "enabled"), ("bypassing", None)]

    play(tmp_path, act, for_istio=True)


def test_istios_annotation_that_is_missing_or_too_much_is_put_right(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        await change()
        assert stage.annotation(ISTIO) == "enabled"
        stage.show()
        stage.workers = {}
        await change()
        assert (stage.annotation(), stage.annotation(ISTIO)) == (None, None)

    play(tmp_path, act, worker(), for_istio=True, **{CAPTURE: "enabled"})


def test_under_our_own_controller_istios_annotation_is_another_s(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        stage.workers = {UID: worker(Goal.UNENROL, captured=False)}
        await change()
        assert (stage.annotation(), stage.annotation(ISTIO)) == ("bypassing", "enabled")

    play(tmp_path, act, worker(), **{CAPTURE: "enabled", ISTIO: "enabled"})


def test_who_waits_for_what_is_written_waits_through_a_server_that_refuses(tmp_path: Path) -> None:
    async def act(stage: Stage, change: Any) -> None:
        stage.fake.script = lambda request: refusal(503) if request.method == "PATCH" else None
        stage.workers = {UID: worker()}
        written = asyncio.get_running_loop().create_task(stage.annotator.written())
        await change()
        assert not written.done()
        stage.fake.script = lambda request: None
        await asyncio.wait_for(written, 5)
        assert stage.annotation() == "enabled"

    play(tmp_path, act)
