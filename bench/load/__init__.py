"""The load generator: C, built on first use."""

import subprocess
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror")


def build(into: Path) -> Path:
    """Compile it into a directory; the path of the program."""
    program = into / "load"
    subprocess.run(["cc", *FLAGS, "-o", str(program), *map(str, SOURCES)], check=True)
    return program
