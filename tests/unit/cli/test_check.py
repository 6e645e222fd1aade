import json

from click.testing import CliRunner

from bpf import features
from bpf.features import Check
from cli.check import check


def run(monkeypatch, *checks, json_wanted=False):
    monkeypatch.setattr(features, "all_checks", lambda: list(checks))
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
