import json
import subprocess
import sys
from pathlib import Path

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


def test_help_of_every_lab_command_can_be_printed():
    listing = run("lab", "--help")
    for name in ("up", "down", "list", "status", "apply", "delete", "get", "label", "exec", "logs", "restart"):
        assert name in listing.stdout
        assert run("lab", name, "--help").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["lab", "nonsense"], ["lab", "up"], ["lab", "exec", "a/b", "ls"], ["lab", "exec", "a/b"]]
)
def test_wrong_usage_ends_with_2(arguments):
    assert run(*arguments).exit_code == 2


def test_starting_the_command_imports_nothing_heavy():
    code = "import sys, json; from cli.main import culvert; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"asyncio", "yaml", "pyroute2", "grpc", "cryptography", "lab.cluster", "bcc"}
    assert not heavy & set(json.loads(done.stdout))
