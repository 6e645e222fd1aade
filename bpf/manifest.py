"""manifest.json: what a node's set was made of. Written by the loader, read by whoever opens or replaces the set."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bpf.kernel import MapShape

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Changes with every boot, as netns cookies do."""
    return BOOT_ID.read_text().strip()


class BadManifest(Exception):
    """The file is there and is not a manifest."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One loaded set."""

    key: str
    schema: int
    source: str  # hash of programs and headers
    boot: str
    kernel: str
    tags: dict[str, str] = field(default_factory=dict)  # program name to tag
    shapes: dict[str, MapShape] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """The manifest, or None when there is none; raises BadManifest."""
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        try:
            raw: dict[str, Any] = json.loads(text)
            shapes = {name: MapShape(**shape) for name, shape in raw.pop("shapes").items()}
            return cls(shapes=shapes, **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadManifest(f"{path}: not a manifest of a program set: {error}") from error
