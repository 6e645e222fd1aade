"""What ended processes of a cluster leave on the machine: namespaces with names, and mounts."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from lab import namespaces


def namespaces_of(processes: Iterable[int]) -> list[str]:
    """Names of the network namespaces in which processes live. To be asked while they do."""
    inodes = {inode for pid in processes if (inode := _netns_of(pid))}
    return [name for name in namespaces.names() if namespaces.inode(namespaces.path_of(name)) in inodes]


def unmount(folder: Path) -> None:
    """Take away every mount below a folder, the innermost first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((path for path in mounts if path.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


def _netns_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None
