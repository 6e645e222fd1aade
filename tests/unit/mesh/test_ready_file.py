import asyncio
from pathlib import Path

from mesh import ready_file


def test_the_file_is_there_and_fresh_while_ready_and_gone_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "probe" / "ready"
    state = [False]

    async def run() -> None:
        task = asyncio.get_running_loop().create_task(ready_file.keep(path, lambda: state[0], 0.01))
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
