import asyncio
from pathlib import Path

import pytest

from daemonset.watch import DirectoryWatch
from tests.unit.daemonset.fakes import open_descriptors


def test_a_change_between_arming_and_waiting_is_seen_once(tmp_path: Path) -> None:
    async def run() -> None:
        with DirectoryWatch([tmp_path]) as watch:
            (tmp_path / "a").write_text("x")
            (tmp_path / "a").rename(tmp_path / "b")
            assert await watch.changed(5)
            assert not await watch.changed(0.01)
            (tmp_path / "b").unlink()
            assert await watch.changed(5)

    before = open_descriptors()
    asyncio.run(run())
    assert open_descriptors() == before


def test_a_directory_that_is_not_there_is_named_and_nothing_leaks(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError, match="absent"):
        DirectoryWatch([tmp_path / "absent"])
    assert open_descriptors() == before
