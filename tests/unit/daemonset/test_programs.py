import asyncio
import sys
from pathlib import Path

import pytest

from daemonset.programs import LoadFailed, run_loader


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the interpreter: a script that gets the loader's arguments."""
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def write(script: Path, body: str) -> None:
    script.write_text(f"#!{sys.base_prefix}/bin/python3\nimport os, sys, time\n{body}\n")
    script.chmod(0o755)


def test_the_loader_is_a_child_with_verb_and_node(loader: Path) -> None:
    write(loader, "print(*sys.argv[1:])")
    assert asyncio.run(run_loader("load", "l-n1", 10)).split() == ["-m", "bpf.loader", "load", "--node", "l-n1"]


def test_a_failure_carries_the_last_words_of_the_loader(loader: Path) -> None:
    write(loader, "print('x\\n' * 100 + 'R1 type=inv', file=sys.stderr); sys.exit(3)")
    with pytest.raises(LoadFailed, match="status 3") as caught:
        asyncio.run(run_loader("load", "l-n1", 10))
    assert str(caught.value).endswith("R1 type=inv")
    assert len(str(caught.value).splitlines()) <= 8


def test_a_loader_that_hangs_is_killed_with_its_children(loader: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    write(loader, f"pid = os.fork()\nif pid: open({str(pid_file)!r}, 'w').write(str(pid))\ntime.sleep(60)")
    with pytest.raises(LoadFailed, match="not done after"):
        asyncio.run(run_loader("load", "l-n1", 0.2))
    grandchild = Path("/proc") / pid_file.read_text() / "stat"
    assert not grandchild.exists() or grandchild.read_text().split()[2] in ("Z", "X")
