"""bpffs, where pins live: mounted by systemd on most machines, and by the loader where nobody did."""

import ctypes
import os
from pathlib import Path

from bpf import features
from bpf.paths import BPFFS

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
