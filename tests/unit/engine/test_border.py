"""A module that was built from another border is not used, and the error says what to run."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import border


def module(*digests: bytes) -> SimpleNamespace:
    """What a build of that border looks like; without a digest it is older than the check."""
    lib = SimpleNamespace(cv_border_digest=lambda: digests[0]) if digests else SimpleNamespace()
    return SimpleNamespace(lib=lib, ffi=SimpleNamespace(string=lambda text: text))


def test_the_built_module_is_this_trees() -> None:
    assert border.load().lib


@pytest.mark.parametrize("other", [module(b"0" * 64), module()], ids=["another", "older than the check"])
def test_a_module_of_another_border_is_refused(other: SimpleNamespace) -> None:
    with pytest.raises(border.BorderUnavailable, match=r"another border.h.*make setup"):
        border.check(other)  # type: ignore[arg-type]


def test_the_digest_changes_with_the_header(tmp_path: Path) -> None:
    copy = tmp_path / "border.h"
    copy.write_bytes(border.HEADER.read_bytes())
    border.check(border.load(), copy)
    copy.write_bytes(border.HEADER.read_bytes() + b"\n")
    with pytest.raises(border.BorderUnavailable):
        border.check(border.load(), copy)


def test_an_installation_without_sources_has_nothing_to_differ_from(tmp_path: Path) -> None:
    border.check(module(b"0" * 64), tmp_path / "border.h")  # type: ignore[arg-type]


def test_a_module_that_is_missing_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "engine._border", None)
    with pytest.raises(border.BorderUnavailable, match="make setup"):
        border.load()
