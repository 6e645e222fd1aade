import json
from pathlib import Path

import pytest

from daemonset import commands
from daemonset.__main__ import main
from daemonset.commands import CommandRefused
from tests.unit.daemonset.fakes import held_lock


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the loader was asked for."""
    asked: list[str] = []

    async def run_loader(verb: str, key: str, timeout_s: float) -> str:
        asked.append(f"{verb} {key}")
        return "done\n"

    monkeypatch.setattr(commands, "run_loader", run_loader)
    return asked


def test_unload_is_refused_while_the_agent_runs_unless_forced(tmp_path: Path, verbs: list[str]) -> None:
    with held_lock(tmp_path):
        with pytest.raises(CommandRefused, match="stop it first"):
            commands.unload("l-n1", tmp_path)
        assert verbs == []
        commands.unload("l-n1", tmp_path, force=True)
    commands.unload("l-n1", tmp_path)
    assert verbs == ["unload l-n1", "unload l-n1"]


def test_upgrade_works_beside_a_running_agent(tmp_path: Path, verbs: list[str]) -> None:
    with held_lock(tmp_path):
        assert commands.upgrade_bpf("l-n1") == "done"
    assert verbs == ["upgrade l-n1"]


def test_status_tells_whether_the_agent_that_wrote_it_runs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        commands.status(tmp_path)
    (tmp_path / "agent-status.json").write_text(json.dumps({"node": "n1"}))
    assert commands.status(tmp_path) == {"node": "n1", "running": False}
    with held_lock(tmp_path):
        assert commands.status(tmp_path)["running"] is True


def test_exit_statuses(tmp_path: Path, verbs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], {}) == 0
    assert main(["unload", "--key", "l-n1", "--runtime", str(tmp_path)], {}) == 0
    assert main(["status", "--key", "l-n1", "--runtime", str(tmp_path)], {}) == 1
    assert main(["unload", "--bogus"], {}) == 2
    assert "--bogus" in capsys.readouterr().err
