import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.main import culvert

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments):
    return CliRunner().invoke(culvert, list(arguments), prog_name="culvert")


def test_help_names_the_commands_that_are_there():
    result = run("--help")
    assert result.exit_code == 0
    assert "lab" in result.stdout


def commands(group=culvert, path=()):
    """The words of every command that does something."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_of_every_command_shows_it_in_use(words):
    shown = run(*words, "--help")
    assert shown.exit_code == 0
    assert "\\b" not in shown.stdout
    assert any(line.startswith(f"  culvert {' '.join(words)}") for line in shown.stdout.splitlines())


def test_help_of_a_group_lists_its_commands():
    listing = run("lab", "--help")
    for name in ("up", "down", "list", "status", "apply", "delete", "get", "label", "exec", "logs", "restart"):
        assert name in listing.stdout


@pytest.mark.parametrize(
    "arguments", [["lab", "nonsense"], ["lab", "up"], ["lab", "exec", "a/b", "ls"], ["lab", "exec", "a/b"]]
)
def test_wrong_usage_ends_with_2(arguments):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("words", [["statsu"], ["lab", "stauts"], ["config", "workload"]])
def test_a_command_that_is_none_is_answered_with_the_nearest(words):
    done = run(*words)
    assert done.exit_code == 2
    assert "Did you mean '" in done.stderr


def test_the_version_is_the_packages():
    assert run("--version").stdout == f"culvert {importlib.metadata.version('culvert')}\n"


def test_a_namespace_that_cannot_be_one_is_refused_before_anything_is_asked():
    done = run("install", "--namespace", "Bad_Name")
    assert done.exit_code == 2
    assert "'Bad_Name' is no name of a namespace" in done.stderr


def test_starting_the_command_imports_nothing_heavy():
    code = "import sys, json; from cli.main import culvert; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"asyncio", "yaml", "pyroute2", "grpc", "cryptography", "lab.cluster", "bcc"}
    assert not heavy & set(json.loads(done.stdout))
