"""A mounted ConfigMap as kubelet keeps it: each content in a directory of its own, behind a link that is swapped."""

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path

_versions = itertools.count(1)


def mount(folder: Path, data: Mapping[str, str]) -> None:
    """Bring a folder to this content."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..{next(_versions)}"
    version.mkdir()
    for name, text in data.items():
        (version / name).write_text(text)
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").rename(folder / "..data")
    for name in data:
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to(f"..data/{name}")
