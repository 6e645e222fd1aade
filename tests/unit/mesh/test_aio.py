import asyncio

import pytest

from mesh.aio import Background, TaskEnded


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise OSError("disk gone")


async def nothing() -> None:
    return


def test_a_lasting_task_that_ends_is_a_fault() -> None:
    async def run() -> None:
        async with Background() as background:
            background.start(forever(), "kept")
            background.start(nothing(), "short")
            await background.failed()

    with pytest.raises(TaskEnded, match="short"):
        asyncio.run(run())


def test_a_failure_reaches_the_owner() -> None:
    async def run() -> None:
        async with Background() as background:
            background.run_once(fail(), "failing")
            await background.failed()

    with pytest.raises(OSError, match="disk gone"):
        asyncio.run(run())


def test_a_task_that_may_end_is_no_fault_and_leaving_cancels_the_rest() -> None:
    async def run() -> bool:
        async with Background() as background:
            background.run_once(nothing(), "short")
            lasting = background.start(forever(), "lasting")
            await asyncio.sleep(0)
        return lasting.cancelled()

    assert asyncio.run(run())
