"""What a source says while a test goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from daemonset.cluster.source import ClusterSource
from daemonset.pods import Snapshot


@contextlib.asynccontextmanager
async def following(source: ClusterSource, snapshots: list[Snapshot]) -> AsyncIterator[None]:
    """Each snapshot of a source is added to the list."""

    async def follow() -> None:
        async for snapshot in source.snapshots():
            snapshots.append(snapshot)

    task = asyncio.get_running_loop().create_task(follow())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
