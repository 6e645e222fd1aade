"""Mounting what nobody mounted."""

from pathlib import Path

import pytest

from bpf import features
from bpf.features import Check
from bpf.loader import bpffs


def test_mounted_bpffs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "bpffs", lambda: Check("bpffs", True, ""))
    assert bpffs.ensure_mounted(tmp_path / "missing") is False
    assert not (tmp_path / "missing").exists()


def test_refusal_of_the_kernel_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMount:
        def mount(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(features, "bpffs", lambda: Check("bpffs", False, ""))
    monkeypatch.setattr(bpffs, "_libc", NoMount())
    with pytest.raises(bpffs.CannotMount, match="cannot be mounted"):
        bpffs.ensure_mounted(tmp_path)
