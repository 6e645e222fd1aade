"""Builds `engine._border`: the C data path and its cffi binding in one extension module.

`pip install -e .` builds it through setup.py. By hand: `python -m engine._build [--sanitize=address|thread]
[--into DIR]`; a sanitized module goes to a directory of its own, because its process must preload the runtime.
"""

import argparse
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "engine"
BORDER = ENGINE / "include" / "border.h"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-g", "-fno-strict-aliasing"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-O1"],
    "thread": ["-fsanitize=thread", "-O1"],
}


def declarations() -> str:
    """What cffi parses: the border without preprocessor lines."""
    lines = BORDER.read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def sources() -> list[Path]:
    """The C files."""
    return sorted((ENGINE / "src").glob("*.c"))


def headers() -> list[Path]:
    """What a rebuild depends on besides the sources."""
    return sorted([*(ENGINE / "src").glob("*.h"), BORDER, ROOT / "bpf" / "include" / "maps.h"])


def builder(base: Path | None, sanitize: str | None = None) -> FFI:
    """The builder; paths are relative to `base` (setuptools insists on that), absolute when it is None."""

    def place(paths: list[Path]) -> list[str]:
        return [str(path.relative_to(base) if base else path) for path in paths]

    extra = SANITIZERS[sanitize] if sanitize else []
    digest = sha256(BORDER.read_bytes()).hexdigest()  # engine/border.py compares it
    made = FFI()
    made.cdef(declarations() + "\nconst char *cv_border_digest(void);\n")
    made.set_source(
        "engine._border",
        f'#include "border.h"\nstatic const char *cv_border_digest(void) {{ return "{digest}"; }}\n',
        sources=place(sources()),
        depends=place(headers()),
        include_dirs=place([ENGINE / "include", ENGINE / "src"]),
        libraries=["ssl", "crypto", "nghttp2", "pthread"],
        # The generated file is not ours: it may warn.
        extra_compile_args=[*FLAGS, "-Wno-unused-parameter", "-Wno-missing-field-initializers", *extra],
        extra_link_args=extra,
    )
    return made


ffi = builder(ROOT)


def build(sanitize: str | None, into: Path) -> Path:
    """Compiles, and puts the module into the directory `into`/engine; returns the module's path."""
    with tempfile.TemporaryDirectory(prefix="engine-build-") as scratch:
        made = Path(builder(None, sanitize).compile(tmpdir=scratch))
        target = into / "engine" / made.name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside and renamed: a process that has the old one mapped keeps it.
        fresh = target.with_suffix(".new")
        shutil.copy2(made, fresh)
        fresh.rename(target)
        # pip's build and this one name the module differently, and the import would go on finding the older one.
        for other in target.parent.glob("_border.*.so"):
            if other != target:
                other.unlink()
        return target


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="build the data path in place")
    parser.add_argument("--sanitize", choices=sorted(SANITIZERS))
    parser.add_argument("--into", type=Path, default=None, help="root of the package tree (default: in place)")
    options = parser.parse_args()
    into = options.into or (ROOT / "build" / f"sanitize-{options.sanitize}" if options.sanitize else ROOT)
    print(build(options.sanitize, into))


if __name__ == "__main__":
    main()
