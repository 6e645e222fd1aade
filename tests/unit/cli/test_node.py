import json

import pytest
from click.testing import CliRunner

from cli import node as module
from lab import paths


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUN", tmp_path)

    def make(*arguments, keys=()):
        for key in keys:
            (tmp_path / key).mkdir()
            (tmp_path / key / "agent-status.json").write_text(json.dumps({"node": key}))
        return CliRunner().invoke(module.node, list(arguments))

    return make


def test_only_node_is_meant_and_a_dead_agent_gives_1(run):
    result = run("status", keys=["demo-a"])
    assert json.loads(result.stdout) == {"node": "demo-a", "running": False}
    assert result.exit_code == 1


def test_several_nodes_are_listed(run):
    result = run("status", keys=["demo-a", "demo-b"])
    assert result.exit_code == 1
    assert "demo-a, demo-b" in result.output


def test_refusal_to_unload_is_told(run, monkeypatch):
    def refuse(key, runtime, *, force):
        assert (key, runtime.name, force) == ("demo-a", "demo-a", False)
        raise module.commands.CommandRefused("the agent runs: stop it first")

    monkeypatch.setattr(module.commands, "unload", refuse)
    result = run("unload", keys=["demo-a"])
    assert result.exit_code == 1
    assert "stop it first" in result.output


def test_upgrade_prints_what_was_done(run, monkeypatch):
    monkeypatch.setattr(module.commands, "upgrade_bpf", lambda key: f"upgraded {key}")
    assert run("upgrade-bpf", "--node", "x").stdout == "upgraded x\n"
