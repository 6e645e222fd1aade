import json
from pathlib import Path

from click.testing import CliRunner

from bpf import features
from bpf.features import Check
from cli.check import check


def run(monkeypatch, *checks, json_wanted=False):
    monkeypatch.setattr(features, "all_checks", lambda: list(checks))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/nowhere"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return CliRunner().invoke(check, ["--json"] if json_wanted else [])


def test_missing_need_fails_and_is_named(monkeypatch):
    result = run(monkeypatch, Check("bpffs", False, "no bpffs is mounted at /sys/fs/bpf"))
    assert result.exit_code == 1
    assert "MISSING" in result.stdout
    assert "no bpffs is mounted" in result.stdout


def test_what_can_be_done_without_is_no_fault(monkeypatch):
    result = run(monkeypatch, Check("mptcp", False, "names of MPTCP sockets", is_required=False))
    assert result.exit_code == 0
    assert "without" in result.stdout


def test_json_says_the_same(monkeypatch):
    result = run(monkeypatch, Check("a", True, "there"), json_wanted=True)
    row = {"name": "a", "passed": True, "required": True, "sentence": "there"}
    assert json.loads(result.stdout) == {"passed": True, "checks": [row]}


def test_a_cluster_that_cannot_be_reached_is_said_and_not_taken_for_this_machine(monkeypatch, tmp_path):
    (tmp_path / "config").write_text("not: a kubeconfig\n")
    result = CliRunner().invoke(check, ["--pre", "--kubeconfig", str(tmp_path / "config")])
    assert result.exit_code == 1
    assert "kubeconfig" in result.stderr


def test_without_a_cluster_there_is_nothing_to_look_at_before_an_installation(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = CliRunner().invoke(check, ["--pre"])
    assert result.exit_code == 1
    assert "no such file is there" in result.stderr
