import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mesh import settings
from mesh.settings import SettingsFault, setting


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds."""

    workers: int = setting(2, "threads")
    names: tuple[str, ...] = setting((), "allowed")


@dataclass(frozen=True, slots=True)
class Tree:
    """A process."""

    node: str = setting(meaning="name of the node")
    secret_word: str = setting("hush", "a password", secret=True)
    verbose: bool = setting(False, "say more")
    path: Path | None = setting(None, "a file")
    limits: Limits = field(default_factory=Limits)


def load(*argv: str, env: dict[str, str] | None = None) -> Tree:
    return settings.load(Tree, "prog", argv, env or {})


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("node: from-file\nlimits: {workers: 3, names: [a, b]}\n")
    tree = load("--config", str(file), "--workers", "5", env={"CULVERT_NODE": "from-env", "CULVERT_WORKERS": "4"})
    assert (tree.node, tree.limits.workers, tree.limits.names) == ("from-env", 5, ("a", "b"))


def test_a_flag_of_type_bool_needs_no_value() -> None:
    assert load("--node", "n", "--verbose").verbose
    assert not load("--node", "n", "--verbose=false").verbose


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("nodee: x\nlimits: {workers: many, wrokers: 1}\nverbose: loud\n")
    with pytest.raises(SettingsFault) as caught:
        load("--config", str(file), "--no-such", env={"CULVERT_WORKERS": "-1"})
    text = "\n".join(caught.value.faults)
    for part in ("--no-such", "nodee: unknown", "limits.wrokers: unknown", "'many'", "'loud'", "negative", "--node"):
        assert part in text
    assert len(caught.value.faults) == 7


def test_faults_of_values_are_reported_with_the_rest() -> None:
    def check(tree: Tree) -> list[str]:
        assert isinstance(tree.node, str)
        return [
            "--node: is not a name" if "/" in tree.node or not tree.node else "",
            f"--secret-word: {tree.secret_word!r} is too short" if len(tree.secret_word) < 3 else "",
            "--workers: takes 1 to 64" if tree.limits.workers > 64 else "",
            "--path: must lie beside --workers",
        ]

    def faults(*argv: str) -> tuple[str, ...]:
        with pytest.raises(SettingsFault) as caught:
            settings.load(Tree, "prog", argv, {}, check)
        return caught.value.faults

    assert faults("--no-such", "--secret-word", "x", "--workers", "many") == (
        "--no-such: no such setting (try --help)",
        "--workers: 'many' is not a number",
        "--node: missing (name of the node)",
        "--secret-word: 'x' is too short",
    )
    assert faults("--node", "a/b", "--workers", "99") == (
        "--node: is not a name",
        "--workers: takes 1 to 64",
        "--path: must lie beside --workers",
    )


@pytest.mark.parametrize("text", ["nan", "inf", "1e999"])
def test_a_number_is_finite(text: str) -> None:
    with pytest.raises(SettingsFault, match="is not a number"):
        settings.load(Waits, "prog", ["--wait-s", text], {})


@dataclass(frozen=True, slots=True)
class Waits:
    """A process that waits."""

    wait_s: float = setting(1.0, "how long")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SettingsFault, match=r"no-such\.yaml"):
        load("--node", "n", "--config", "/nonexistent/no-such.yaml")


def test_a_secret_is_not_dumped() -> None:
    shown = settings.dump(load("--node", "n", "--path", "/x"))
    assert shown["secret_word"] == "<redacted>"
    assert shown["path"] == "/x"
    assert shown["limits"]["workers"] == 2


def test_help_names_every_setting() -> None:
    with pytest.raises(settings.HelpAsked) as caught:
        load("--help")
    assert "--secret-word" in str(caught.value)
    assert "required" in str(caught.value)
    variable = re.search(r"(--[a-z-]+) is (CULVERT_[A-Z_]+)\.$", str(caught.value))
    assert variable is not None
    assert f"  {variable[1]} " in str(caught.value)
    assert variable[2] == "CULVERT" + variable[1][1:].replace("-", "_").upper()
