"""Waking streams together, and waiting until all of them have heard."""

import asyncio
import itertools

from controller.serve.hub import Hub
from controller.serve.store import ResourceSet
from controller.translate.compile import Resource
from mesh.xds import ADDRESS_TYPE


class FakeStream:
    def __init__(self) -> None:
        self.woken = 0
        self.settled = 0
        self.taken = 0

    def wake(self) -> None:
        self.woken += 1

    def has_accepted(self, type_url: str, revision: int) -> bool:
        return self.has_settled(type_url, revision)

    def has_settled(self, type_url: str, revision: int) -> bool:
        return self.settled >= revision

    def cursor(self, type_url: str) -> int:
        return self.taken


def test_a_burst_of_changes_wakes_each_stream_once() -> None:
    async def test() -> None:
        hub, stream = Hub([ResourceSet(ADDRESS_TYPE)], gather_s=0.001), FakeStream()
        hub.join(stream)
        for _ in range(50):
            hub.changed()
        assert stream.woken == 0
        await asyncio.sleep(0.01)
        assert stream.woken == 1
        hub.changed()
        await asyncio.sleep(0.01)
        assert stream.woken == 2

    asyncio.run(test())


def test_wakings_keep_a_distance_that_grows_with_the_streams() -> None:
    async def test() -> None:
        hub, streams = Hub([ResourceSet(ADDRESS_TYPE)], gather_s=0), [FakeStream() for _ in range(100)]
        for stream in streams:
            hub.join(stream)
        loop, woken_at = asyncio.get_running_loop(), list[float]()
        for _ in range(3):
            hub.changed()
            woken = streams[0].woken
            while streams[0].woken == woken:
                await asyncio.sleep(0.001)
            woken_at.append(loop.time())
        assert all(later - earlier >= 0.03 for earlier, later in itertools.pairwise(woken_at))

    asyncio.run(test())


def test_after_a_silence_a_change_waits_for_no_distance() -> None:
    async def test() -> None:
        hub, streams = Hub([ResourceSet(ADDRESS_TYPE)], gather_s=0), [FakeStream() for _ in range(400)]
        for stream in streams:
            hub.join(stream)
        hub.changed()
        await asyncio.sleep(0)  # the timer is due at once
        await asyncio.sleep(0.001)
        assert streams[0].woken == 1

    asyncio.run(test())


def test_waiting_ends_when_all_have_answered_or_left() -> None:
    async def test() -> None:
        hub, quick, leaving, late = Hub([ResourceSet(ADDRESS_TYPE)]), FakeStream(), FakeStream(), FakeStream()
        hub.join(quick)
        hub.join(leaving)
        waiting = asyncio.get_running_loop().create_task(hub.wait_settled(ADDRESS_TYPE, 5, 5.0))
        await asyncio.sleep(0)
        hub.join(late)  # came after the change: it is sent everything anyway
        quick.settled = 5
        hub.note_progress()
        await asyncio.sleep(0)
        assert not waiting.done()
        hub.leave(leaving)
        assert await waiting

    asyncio.run(test())


def test_a_stream_that_hangs_holds_nobody_up_for_long() -> None:
    async def test() -> None:
        hub = Hub([ResourceSet(ADDRESS_TYPE)])
        hub.join(FakeStream())
        assert not await hub.wait_settled(ADDRESS_TYPE, 5, 0.01)

    asyncio.run(test())


def test_removals_are_forgotten_only_when_every_stream_has_taken_them() -> None:
    async def test() -> None:
        store = ResourceSet(ADDRESS_TYPE)
        hub, slow = Hub([store], gather_s=0), FakeStream()
        hub.join(slow)
        store.put(Resource(ADDRESS_TYPE, "a", "v1", b""))
        store.remove("a")
        hub.changed()
        await asyncio.sleep(0.005)
        assert store.changed_since(0) == ["a"]
        slow.taken = store.revision
        hub.changed()
        await asyncio.sleep(0.005)
        assert store.changed_since(0) == []

    asyncio.run(test())
