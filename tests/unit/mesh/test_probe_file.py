import asyncio
import time
from pathlib import Path

from mesh import probe_file


def test_the_file_is_there_and_fresh_while_ready_and_gone_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "probe" / "ready"
    state = [False]

    async def run() -> None:
        task = asyncio.get_running_loop().create_task(probe_file.keep(path, lambda: state[0], 0.01))
        await asyncio.sleep(0.03)
        assert not path.exists()
        state[0] = True
        await asyncio.sleep(0.03)
        first = path.stat().st_mtime_ns
        await asyncio.sleep(0.05)
        assert path.stat().st_mtime_ns > first
        state[0] = False
        await asyncio.sleep(0.03)
        assert not path.exists()
        state[0] = True
        await asyncio.sleep(0.03)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not path.exists()

    asyncio.run(run())


def test_a_loop_that_is_stuck_leaves_the_file_of_life_to_age(tmp_path: Path) -> None:
    path = tmp_path / "alive"

    async def run() -> None:
        task = asyncio.get_running_loop().create_task(probe_file.keep_alive(path, 0.01))
        await asyncio.sleep(0.03)
        before = path.stat().st_mtime_ns
        time.sleep(0.05)  # noqa: ASYNC251 - this is the fault
        assert path.stat().st_mtime_ns == before
        await asyncio.sleep(0.03)
        assert path.stat().st_mtime_ns > before
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not path.exists()

    asyncio.run(run())
