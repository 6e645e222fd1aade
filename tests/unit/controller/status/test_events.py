"""Events about pods that cannot be enrolled: said once, to whoever looks at the pod."""

import asyncio
import datetime
from pathlib import Path

from controller.status.events import Events, Refused, event
from mesh.aio import Background
from tests.support.waiting import until
from tests.unit.controller.fake_api import FakeApi, refusal

REFUSED = Refused("shop", "web", "uid-web", "port-in-use", "the pod listens on 15008")


def test_a_reason_is_said_once_and_another_one_again(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with fake.serving(tmp_path) as api, Background() as tasks:
            events = Events(api)
            tasks.start(events.run(), "events")
            for _ in range(3):
                events.tell(REFUSED)
            events.tell(Refused("shop", "web", "uid-web", "label", "no such value"))
            written = fake.objects.setdefault("/apis/events.k8s.io/v1/events", {})
            await until(lambda: len(written) == 2)
            notes = sorted(one["note"] for one in written.values())
            assert notes == ["label: no such value", "port-in-use: the pod listens on 15008"]
            assert len(fake.requests) == 2

    asyncio.run(test())


def test_two_controllers_say_it_once(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with fake.serving(tmp_path) as api, Background() as tasks:
            for name in ("one", "two"):
                events = Events(api)
                tasks.start(events.run(), name)
                events.tell(REFUSED)
            await until(lambda: len(fake.requests) == 2)
            assert len(fake.objects["/apis/events.k8s.io/v1/events"]) == 1

    asyncio.run(test())


def test_an_event_that_cannot_be_written_keeps_no_other_from_being_written(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: refusal(500) if len(fake.requests) == 1 else None
        async with fake.serving(tmp_path) as api, Background() as tasks:
            events = Events(api)
            tasks.start(events.run(), "events")
            events.tell(REFUSED)
            events.tell(Refused("shop", "db", "uid-db", "label", ""))
            await until(lambda: len(fake.objects.get("/apis/events.k8s.io/v1/events", {})) == 1)

    asyncio.run(test())


def test_a_pod_that_is_enrolled_and_wants_a_port_of_the_mesh_is_not_called_not_enrolled() -> None:
    now = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
    said = event(Refused("shop", "web", "uid-web", "port_reserved", "15008 is the mesh's"), now)
    assert (said["reason"], said["action"], said["type"]) == ("PortReserved", "Bind", "Warning")
    assert (event(REFUSED, now)["reason"], event(REFUSED, now)["action"]) == ("NotEnrolled", "Enrol")


def test_an_event_keeps_to_the_apis_bounds() -> None:
    now = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
    long = event(Refused("shop", "x" * 253, "u", "r", "ä" * 2000), now)
    assert len(long["note"].encode()) <= 1024
    assert len(long["metadata"]["name"]) <= 253
    assert long["eventTime"] == "2026-11-21T00:00:00.000000Z"
