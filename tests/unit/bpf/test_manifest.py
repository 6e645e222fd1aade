"""The manifest survives its file, and rubbish is told apart from absence."""

from pathlib import Path

import pytest

from bpf.kernel import MapShape
from bpf.manifest import BadManifest, Manifest, boot_id

ONE = Manifest("lab-n1", 1, "abc", "boot", "6.1", {"connect4": "00ff"}, {"pods": MapShape(1, 8, 40, 1024, 1)})


def test_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "manifest.json"
    ONE.write(path)
    assert Manifest.read(path) == ONE
    assert [entry.name for entry in path.parent.iterdir()] == ["manifest.json"]


def test_absent_manifest_is_none(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path / "manifest.json") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"shapes": {}}', '{"shapes": {"pods": {"type": 1}}}'])
def test_rubbish_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(BadManifest, match=r"manifest\.json"):
        Manifest.read(path)


def test_boot_id_is_one_word() -> None:
    assert len(boot_id()) == 36
