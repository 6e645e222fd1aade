"""Compiles the plugin's sources for tests, with sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[4] / "daemonset" / "cni"


def compile_c(target: Path, *sources: Path) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, "-o", str(target), *map(str, sources)], check=True, timeout=60)
    return target
