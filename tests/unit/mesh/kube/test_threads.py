"""Blocking work beside the loop: results, faults, and nobody who waits for a thread that hangs."""

import asyncio
import threading

import pytest

from mesh.kube.threads import MAX_IDLE, Channel, Closed, run


def test_results_and_faults_come_back() -> None:
    async def test() -> None:
        assert await run(lambda: 7, "seven") == 7
        with pytest.raises(ZeroDivisionError):
            await run(lambda: 1 // 0, "fault")

    asyncio.run(test())


def test_work_that_hangs_keeps_nobody_from_ending() -> None:
    release = threading.Event()

    async def test() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await run(lambda: release.wait(60), "hangs")

    asyncio.run(test())  # a pool's thread would be waited for here
    release.set()


def test_threads_are_used_again_and_few_of_them_are_kept() -> None:
    async def test() -> None:
        first = await run(threading.get_ident, "first")
        await eventually_idle()
        assert await run(threading.get_ident, "second") == first
        release = threading.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(3 * MAX_IDLE):
                group.create_task(run(release.wait, "held"))
            await asyncio.sleep(0.01)
            release.set()
        await eventually_idle()
        assert sum(thread.name == "kube-idle" for thread in threading.enumerate()) <= MAX_IDLE

    async def eventually_idle() -> None:
        while any(thread.name in ("first", "second", "held") for thread in threading.enumerate()):
            await asyncio.sleep(0.001)

    asyncio.run(test())


def test_a_channel_keeps_order_and_makes_its_writer_wait() -> None:
    async def test() -> None:
        channel: Channel[int] = Channel(3)
        written: list[int] = []

        def write() -> None:
            for number in range(100):
                channel.put([number])
                written.append(number)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        await asyncio.sleep(0.05)
        assert len(written) == 3
        taken: list[int] = []
        while len(taken) < 100:
            taken += await channel.take()
        assert taken == list(range(100))
        thread.join(5)

    asyncio.run(test())


def test_a_channel_that_is_closed_lets_its_writer_go() -> None:
    async def test() -> None:
        channel: Channel[int] = Channel(1)
        ended = threading.Event()

        def write() -> None:
            try:
                while True:
                    channel.put([1])
            except Closed:
                ended.set()

        threading.Thread(target=write, daemon=True).start()
        await channel.take()
        channel.close()
        assert await asyncio.to_thread(ended.wait, 5)

    asyncio.run(test())
