import asyncio
import os
from pathlib import Path

import pytest

from daemonset.lock import AnotherAgent, only_agent, running_agent


def test_the_second_agent_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    async def run() -> None:
        async with only_agent(tmp_path, patience_s=0):
            with pytest.raises(AnotherAgent, match=f"pid {os.getpid()}"):
                async with only_agent(tmp_path, patience_s=0):
                    pytest.fail("two agents hold the lock")

    asyncio.run(run())


def test_the_holder_is_known_while_it_runs_only(tmp_path: Path) -> None:
    async def run() -> None:
        assert running_agent(tmp_path) == ""
        async with only_agent(tmp_path, patience_s=0):
            assert running_agent(tmp_path) == str(os.getpid())
        assert running_agent(tmp_path) == ""
        async with only_agent(tmp_path, patience_s=0):
            assert running_agent(tmp_path) == str(os.getpid())

    asyncio.run(run())


def test_without_a_limit_an_agent_waits_for_the_end_of_the_other(tmp_path: Path) -> None:
    async def run() -> None:
        order: list[str] = []

        async def second() -> None:
            async with only_agent(tmp_path, patience_s=None):
                order.append("second")

        async with only_agent(tmp_path, patience_s=0):
            waiting = asyncio.get_running_loop().create_task(second())
            await asyncio.sleep(0.15)
            order.append("first")
        await asyncio.wait_for(waiting, 2)
        assert order == ["first", "second"]

    asyncio.run(run())


def test_one_that_gives_up_waiting_leaves_the_lock_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async def second() -> None:
            async with only_agent(tmp_path, patience_s=None):
                pytest.fail("two agents hold the lock")

        async with only_agent(tmp_path, patience_s=0):
            waiting = asyncio.get_running_loop().create_task(second())
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert running_agent(tmp_path) == str(os.getpid())
        assert running_agent(tmp_path) == ""

    asyncio.run(run())
