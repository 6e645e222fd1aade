import pytest
from click.testing import CliRunner

from cli.completion import SHELLS
from cli.main import culvert


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_printed_without_running_the_shell(shell, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    done = CliRunner().invoke(culvert, ["completion", shell])
    assert done.exit_code == 0, done.output
    assert f"{shell}_complete" in done.stdout


def test_commands_are_completed_by_what_the_script_asks():
    done = CliRunner().invoke(
        culvert,
        prog_name="culvert",
        env={"_CULVERT_COMPLETE": "bash_complete", "COMP_WORDS": "culvert unin", "COMP_CWORD": "1"},
    )
    assert "uninstall" in done.stdout
