"""bpffs, where pins live: mounted by systemd on most machines, and by the loader where nobody did.

Whoever wants the machine as it was unmounts it again; a node does not, because its pins outlive all processes.
"""

import ctypes
import os
from pathlib import Path

from bpf import features
from bpf.paths import BPFFS

# What a kernel with CONFIG_BPF_PRELOAD pins in every bpffs by itself.
_KERNELS_OWN = {"maps.debug", "progs.debug"}
_UMOUNT_NOFOLLOW = 8
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8

_libc = ctypes.CDLL(None, use_errno=True)


class CannotMount(Exception):
    """bpffs is absent and cannot be mounted."""


def ensure_mounted(directory: Path = BPFFS) -> bool:
    """Mount bpffs unless it is there; True when that was needed."""
    if features.bpffs().is_met:
        return False
    directory.mkdir(exist_ok=True)
    if _libc.mount(b"bpf", os.fsencode(directory), b"bpf", _MS_NOSUID_NODEV_NOEXEC, b"mode=0700") != 0:
        code = ctypes.get_errno()
        raise CannotMount(f"no bpffs at {directory}, and it cannot be mounted: {os.strerror(code)}")
    return True


def unmount_if_unused(directory: Path = BPFFS) -> bool:
    """Undo `ensure_mounted`, unless something is pinned there or it is in use; True when it is gone."""
    try:
        if not features.is_bpffs(directory) or {entry.name for entry in directory.iterdir()} - _KERNELS_OWN:
            return False
    except OSError:
        return False
    return bool(_libc.umount2(os.fsencode(directory), _UMOUNT_NOFOLLOW) == 0)
