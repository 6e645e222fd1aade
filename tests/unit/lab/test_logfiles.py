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
