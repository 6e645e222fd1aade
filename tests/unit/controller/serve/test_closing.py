"""Streams end when the controller goes down, or when they have had their time; never for another reason."""

import asyncio

from controller.serve.closing import Closing


async def never() -> str:
    await asyncio.Event().wait()
    return "done"


def test_work_that_ends_by_itself_gives_its_result() -> None:
    async def work() -> str:
        return "done"

    assert asyncio.run(Closing().run_until(work())) == "done"


def test_work_ends_with_the_process() -> None:
    async def test() -> None:
        closing = Closing()
        asyncio.get_running_loop().call_soon(closing.set)
        assert await closing.run_until(never()) is None
        assert closing.is_set

    asyncio.run(test())


def test_work_ends_when_it_had_its_time() -> None:
    async def test() -> None:
        closing = Closing()
        assert await closing.run_until(never(), 0.01) is None
        assert not closing.is_set

    asyncio.run(test())


def test_lives_of_streams_are_spread() -> None:
    lives = {Closing(100).stream_life_s() for _ in range(50)}
    assert len(lives) > 40
    assert all(life is not None and 90 <= life <= 110 for life in lives)
    assert Closing(0).stream_life_s() is None
