"""What the lab's own tests share: the command line as a subprocess, a lab for a while, and what it left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CULVERT = [sys.executable, "-m", "cli"]


def culvert(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """Run `culvert` as a user would and return what it did."""
    defaults: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
    return subprocess.run([*CULVERT, *arguments], cwd=ROOT, check=False, **{**defaults, **options})


def start(*arguments: str, **options: Any) -> "subprocess.Popen[Any]":
    """Start `culvert` and leave it running, Ctrl-C heeded: a shell's job in the background is born deaf to it."""
    return subprocess.Popen(["env", "--default-signal=INT", *CULVERT, *arguments], cwd=ROOT, **options)


def name(purpose: str) -> str:
    """A lab's name that no other run of these tests has."""
    return f"t{purpose}{os.getpid()}"


@contextmanager
def lab(purpose: str, manifests: Path, *options: str) -> Iterator[str]:
    """A lab without the mesh, taken down whatever happens."""
    own = name(purpose)
    done = culvert("lab", "up", str(manifests), "--lab", own, "--no-mesh", *options)
    try:
        assert done.returncode == 0, done.stderr
        yield own
    finally:
        culvert("lab", "down", "--lab", own)


def status(own: str) -> dict[str, Any]:
    """`lab status --json`."""
    found: dict[str, Any] = json.loads(culvert("lab", "status", "--lab", own, "--json").stdout)
    return found


def left_behind(own: str) -> list[str]:
    """Everything on this machine that carries the lab's name."""
    found = [str(path) for path in Path("/run/netns").glob(f"*{own}*")]
    found += [str(path) for path in Path("/run/culvert").rglob(f"*{own}*")]
    found += [str(path) for path in Path("/sys/fs/bpf").rglob(f"*{own}*")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if own in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if own in command:
            found.append(f"process {process.name}: {command}")
    return found
