"""Takes away what a lab has left on the machine, from its record alone: works when its supervisor was killed.

The order matters: processes first, then pins (links fall with them), then namespaces, then files. Every step may find
its work done already.
"""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpf.loader import bpffs
from bpf.paths import escape
from lab import names, namespaces, paths
from lab.paths import LabPaths

KILL_DEADLINE_S = 5.0


def sweep(lab: str) -> list[str]:
    """Remove everything of a lab; returns what could not be removed, in words."""
    own = LabPaths(lab)
    record: dict[str, Any] = paths.read_json(own.record) or {}
    spaces = set(record.get("netns", ())) or _guess_namespaces(lab)
    keys = set(record.get("keys", ())) or _guess_keys(lab)
    left = _kill(_processes_in(spaces))
    for key in sorted(keys):
        left += _remove_pins(key)
        left += _remove_tree(paths.node_runtime(key))
    for name in sorted(spaces):
        try:
            namespaces.remove(name)
        except OSError as error:
            left.append(f"network namespace {name}: {error}")
    left += _remove_tree(own.root)
    for directory in (paths.LABS, paths.RUN):
        with suppress(OSError):
            directory.rmdir()
    if not record or record.get("made_netns_directory"):
        namespaces.remove_directory_if_unused()
    if record.get("mounts_bpffs"):
        bpffs.unmount_if_unused()
    return left


def _guess_namespaces(lab: str) -> set[str]:
    """Without a record: names that begin like this lab's and that no other lab has on record."""
    others: set[str] = set()
    for other in paths.labs():
        if other != lab:
            others |= set((paths.read_json(LabPaths(other).record) or {}).get("netns", ()))
    return {name for name in namespaces.names() if name.startswith(f"cv-{lab}-")} - others


def _guess_keys(lab: str) -> set[str]:
    others: set[str] = set()
    for other in paths.labs():
        if other != lab:
            others |= set((paths.read_json(LabPaths(other).record) or {}).get("keys", ()))
    with suppress(FileNotFoundError):
        found = {entry.name for entry in os.scandir(paths.RUN) if entry.name.startswith(f"{lab}-")}
        return found - others
    return set()


def _processes_in(spaces: set[str]) -> set[int]:
    inodes = {namespaces.inode(namespaces.path_of(name)) for name in spaces} - {None}
    inodes.discard(Path("/proc/self/ns/net").stat().st_ino)
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                if Path(f"/proc/{entry.name}/ns/net").stat().st_ino in inodes:
                    found.add(int(entry.name))
    return found


def _kill(pids: set[int]) -> list[str]:
    waiting = set(pids)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_DEADLINE_S
    while waiting and time.monotonic() < deadline:
        waiting = {pid for pid in waiting if _is_alive(pid)}
        time.sleep(0.01)
    return [f"process {pid} does not end" for pid in sorted(waiting)]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _remove_pins(key: str) -> list[str]:
    left = _remove_tree(paths.PINS / escape(key))
    with suppress(OSError):
        paths.PINS.rmdir()
    return left


def _remove_tree(root: Path) -> list[str]:
    failed: list[str] = []
    if root.exists():
        shutil.rmtree(root, onerror=lambda _, path, why: failed.append(f"{path}: {why[1]}"))
    return failed


def key_fault(lab: str, node: str) -> str | None:
    """Whether another lab has this node key already, as `a-b` with node `c` and `a` with node `b-c` would."""
    key = names.node_key(lab, node)
    for other in paths.labs():
        if other != lab and key in ((paths.read_json(LabPaths(other).record) or {}).get("keys", ())):
            return f"lab {other!r} has a node with the directory {paths.node_runtime(key)} too; choose another --lab"
    return None
