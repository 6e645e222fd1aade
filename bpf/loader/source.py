"""The one text that BCC compiles: programs and headers joined, because BCC rewrites map calls in the main file only."""

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "headers"
FILES = ("connect.c", "names.c", "ports.c", "carry.c", "inbound.c", "flows.c", "guard.c")

_INCLUDE = re.compile(r'^#include "([a-z_]+\.h)"$')


def assemble(maps: Path, root: Path = ROOT) -> str:
    """The text, with maps pinned in (or taken from) the directory `maps`."""
    seen: set[Path] = set()
    parts = [f'#define CV_MAPS "{maps}"', "#include <uapi/linux/bpf.h>"]
    parts.extend(_flatten(root / "programs" / name, root, seen) for name in FILES)
    return "\n".join(parts) + "\n"


def _flatten(path: Path, root: Path, seen: set[Path]) -> str:
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = _INCLUDE.match(line)
        if match is None:
            lines.append(line)
            continue
        header = root / "include" / match.group(1)
        if header in seen:
            lines.append("")  # keeps the lines below at their numbers
            continue
        lines.append(_flatten(header, root, seen))
        lines.append(f'#line {number + 1} "{path.name}"')
    return "\n".join(lines)


def fingerprint(flags: tuple[str, ...], root: Path = ROOT) -> str:
    """Changes when what would be loaded changes."""
    text = assemble(Path("/"), root) + "\0".join(flags)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
