import pytest
from click.testing import CliRunner

from cli.lab import execute


@pytest.fixture
def invoke(monkeypatch):
    seen = []

    def run(lab_name, target, container, argv, terminal):
        seen.append((lab_name, target, container, argv, terminal))
        return 7

    monkeypatch.setattr(execute, "_run", run)

    def call(*arguments):
        result = CliRunner().invoke(execute.exec_command, list(arguments))
        return result.exit_code, seen

    return call


def test_everything_behind_the_dashes_is_the_command(invoke):
    status, seen = invoke("shop/a", "--", "sh", "-c", "exit 1", "--", "--lab", "x")
    assert status == 7
    assert seen == [(None, "shop/a", None, ["sh", "-c", "exit 1", "--", "--lab", "x"], None)]


def test_options_may_follow_the_target(invoke):
    _, seen = invoke("shop/a", "-it", "-c", "web", "--lab", "one", "--", "sh")
    assert seen == [("one", "shop/a", "web", ["sh"], True)]


@pytest.mark.parametrize("words", [("shop/a", "ls"), ("shop/a", "ls", "-la"), ("shop/a",), ("-t", "shop/a", "ls")])
def test_command_without_dashes_is_a_usage_error_that_shows_where_they_go(words):
    result = CliRunner().invoke(execute.exec_command, list(words))
    assert result.exit_code == 2
    assert "-- CMD ARGS..." in result.output
