import asyncio

from lab import logfiles


def test_long_file_keeps_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(logfiles, "KEEP_BYTES", 100)
    path = tmp_path / "c.log"
    path.write_text("".join(f"line {i}\n" for i in range(1000)))
    with path.open("a") as writer:
        logfiles.cut(path)
        writer.write("after\n")
    lines = path.read_text().splitlines()
    assert lines[0] == "[... cut by the lab ...]"
    assert lines[-2:] == ["line 999", "after"]
    assert path.stat().st_size < 200


def test_writer_that_never_stops_is_cut_again_and_again(tmp_path, monkeypatch):
    for name, value in (("MAX_BYTES", 10_000), ("KEEP_BYTES", 100), ("LOOK_EVERY_S", 0.01), ("LOOK_SOON_S", 0.001)):
        monkeypatch.setattr(logfiles, name, value)
    path = tmp_path / "pod" / "c.log"
    path.parent.mkdir()

    async def test() -> None:
        keeping = asyncio.get_running_loop().create_task(logfiles.keep_bounded(tmp_path))
        with path.open("a") as writer:
            for _ in range(20):
                writer.write("x" * 20_000)
                writer.flush()
                async with asyncio.timeout(2):
                    while path.stat().st_size > 10_000:
                        await asyncio.sleep(0.001)
        keeping.cancel()

    asyncio.run(test())
