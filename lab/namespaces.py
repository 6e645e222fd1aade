"""Named network namespaces under /run/netns, where `ip netns` and `nsenter` find them too."""

import ctypes
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.launch import CLONE_NEWNET, MNT_DETACH, MS_BIND, MS_REC, mount, unshare
from lab.paths import NETNS
from mesh.netns import apart

MS_SHARED = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def path_of(name: str) -> Path:
    """Where a namespace of this name stands."""
    return NETNS / name


def create(name: str) -> Path:
    """Make a namespace and name it; raises FileExistsError when the name is taken."""
    path = path_of(name)
    with _directory():
        path.touch(mode=0o444, exist_ok=False)
    try:
        apart(lambda: _bind_fresh_namespace(path))
    except BaseException:
        path.unlink()
        raise
    return path


def remove(name: str) -> None:
    """Take the name away; the namespace goes with its last process. Removing what is not there is no fault."""
    path = path_of(name)
    # More than once: a foreign `ip netns add` that found no shared mount has stacked a copy on top.
    while _libc.umount2(str(path).encode(), MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def inode(path: Path) -> int | None:
    """What identifies a namespace among /proc/*/ns/net, or None when it is gone."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def names() -> set[str]:
    """All named namespaces of this machine."""
    with suppress(FileNotFoundError):
        return {entry.name for entry in os.scandir(NETNS)}
    return set()


def remove_directory_if_unused() -> None:
    """Undo the shared mount at /run/netns when no namespace is named there any more."""
    if not NETNS.is_dir() or names():
        return
    fd = os.open(NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not names():
            _libc.umount2(str(NETNS).encode(), MNT_DETACH)
    finally:
        os.close(fd)
    with suppress(OSError):
        NETNS.rmdir()


@contextmanager
def _directory() -> Iterator[None]:
    """/run/netns as iproute2 wants it: a shared mount, so that a removal reaches every mount namespace."""
    NETNS.mkdir(parents=True, exist_ok=True)
    fd = os.open(NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # iproute2 takes the same lock
        try:
            mount("none", str(NETNS), None, MS_SHARED | MS_REC)
        except OSError:  # not a mount point yet
            mount(str(NETNS), str(NETNS), None, MS_BIND | MS_REC)
            mount("none", str(NETNS), None, MS_SHARED | MS_REC)
        yield
    finally:
        os.close(fd)


def _bind_fresh_namespace(path: Path) -> None:
    unshare(CLONE_NEWNET)
    mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", str(path), None, MS_BIND)
