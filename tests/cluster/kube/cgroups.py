"""Cgroups of a cluster: one subtree in every hierarchy of the machine, by which everything in it can be ended.

Kubelets find their root prepared in each hierarchy (hosts with cgroup v1 beside v2 need that); daemons are put into
the cgroup2 part, so that one write ends them, their shims and their pods together.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MOUNTS = Path("/sys/fs/cgroup")
DAEMONS = "daemons"


def hierarchies() -> list[Path]:
    """Roots of all hierarchies; the one of cgroup2 comes first."""
    if (MOUNTS / "cgroup.controllers").exists():
        return [MOUNTS]
    found = sorted(path for path in MOUNTS.iterdir() if path.is_dir() and (path / "cgroup.procs").exists())
    return sorted(found, key=lambda path: not (path / "cgroup.controllers").exists())


def make(name: str) -> None:
    """A group of this name (a path) in each hierarchy."""
    for root in hierarchies():
        group = root
        for part in Path(name).parts:
            parent, group = group, group / part
            group.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # v1 starts with none, and then takes no process
                if (group / setting).exists() and (parent / setting).exists():
                    (group / setting).write_text((parent / setting).read_text())


def put(cluster: str, daemon: str, pid: int) -> None:
    """Move a daemon's process, and so its children to come, into its group among the cluster's daemons."""
    group = hierarchies()[0] / cluster / DAEMONS / daemon
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text(str(pid))


def kill(name: str, deadline_s: float = 10.0) -> list[int]:
    """End every process below a group; what is still there after the deadline."""
    deadline = time.monotonic() + deadline_s
    while left := set(processes(name)):
        for group in _groups(name):
            with suppress(OSError):
                (group / "cgroup.kill").write_text("1")
        if time.monotonic() > deadline:
            return sorted(left)
        time.sleep(0.05)
    return []


def remove(name: str) -> None:
    """Take the groups away, from their leaves up."""
    for root in hierarchies():
        top = root / name
        if not top.is_dir():
            continue
        for group in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                group.rmdir()
        with suppress(OSError):
            top.rmdir()


def _groups(name: str) -> Iterator[Path]:
    top = hierarchies()[0] / name
    if top.is_dir():
        yield top


def processes(name: str) -> Iterator[int]:
    """Everything that runs below a group, once per hierarchy."""
    for root in hierarchies():
        for path in (root / name).rglob("cgroup.procs"):
            with suppress(OSError):
                yield from map(int, path.read_text().split())
