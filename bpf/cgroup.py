"""The cgroup2 hierarchy's true root, where programs see every socket of the machine.

A container with a private cgroup namespace finds a subtree mounted as if it were the root. Programs attached there
would miss the other pods, which would then talk in clear: such a directory is refused.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")


class NoCgroupRoot(Exception):
    """There is no usable cgroup2 root; the message says what was found instead."""


def _unescape(field: str) -> str:
    """The mount table writes blanks and backslashes as octal."""
    return field.encode().decode("unicode_escape") if "\\" in field else field


def cgroup2_mounts(mountinfo: Iterable[str]) -> list[Path]:
    """Where cgroup2 is mounted, in the order of the mount table. Mounts of a subtree are left out."""
    found = []
    for line in mountinfo:
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5 or after.split()[:1] != ["cgroup2"]:
            continue
        if _may_be_root(fields[3]):
            found.append(Path(_unescape(fields[4])))
    return found


def _may_be_root(root: str) -> bool:
    """Whether a mount's root, as the table shows it to this cgroup namespace, may be the hierarchy's.

    `/` is the namespace's own root. In a container that has the node's root mounted besides, that mount's is as far
    above it as the container is deep: `/../..`.
    """
    return root == "/" or re.fullmatch(r"(/\.\.)+", root) is not None


def why_not_root(directory: Path) -> str | None:
    """What tells that a cgroup2 directory is not the true root; None when it is."""
    try:
        inode = directory.stat().st_ino
    except OSError as error:
        return f"{directory} cannot be read: {error.strerror}"
    if inode != 1 or (directory / "cgroup.type").exists():
        return f"{directory} shows a part of the hierarchy as its root (a private cgroup namespace)"
    return None


def find_root(mountinfo: Path = MOUNTS) -> Path:
    """The true cgroup2 root from the mount table; raises NoCgroupRoot."""
    mounts = cgroup2_mounts(mountinfo.read_text().splitlines())
    if not mounts:
        raise NoCgroupRoot("cgroup2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup, or /sys/fs/cgroup/unified)")
    reasons = []
    for mount in mounts:
        reason = why_not_root(mount)
        if reason is None:
            return mount
        reasons.append(reason)
    raise NoCgroupRoot("; ".join(reasons))


def open_root(mountinfo: Path = MOUNTS) -> int:
    """A descriptor of the true root, for links; the caller closes it."""
    return os.open(find_root(mountinfo), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
