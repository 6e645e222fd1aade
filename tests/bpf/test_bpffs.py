"""bpffs mounted and unmounted for real, in a mount namespace of its own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")

COVER = "mount -t tmpfs none /sys/fs/bpf"


def inside(prepare: str, program: str) -> str:
    """What the program prints when it runs after `prepare`, where no mount reaches the machine."""
    program = f"from bpf import features\nfrom bpf.loader import bpffs\n{program}"
    command = ["unshare", "--mount", "sh", "-ec", f'{prepare}; exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_covered_bpffs_is_no_bpffs() -> None:
    found = inside(f"mount -t bpf none /sys/fs/bpf; {COVER}", "print(features.bpffs())")
    assert "mount -t bpf bpf /sys/fs/bpf" in found
    assert "is_met=False" in found


def test_what_was_mounted_is_unmounted_once() -> None:
    again = "bpffs.ensure_mounted(), bpffs.ensure_mounted()"
    gone = "bpffs.unmount_if_unused(), bpffs.unmount_if_unused()"
    assert inside(COVER, f"print({again}, {gone})") == "True False True False"


@pytest.mark.parametrize("use", ["os.mkdir('/sys/fs/bpf/pinned')", "open_root = os.open('/sys/fs/bpf', os.O_RDONLY)"])
def test_bpffs_in_use_stays(use: str) -> None:
    program = f"import os\nbpffs.ensure_mounted()\n{use}\nprint(bpffs.unmount_if_unused(), features.bpffs().is_met)"
    assert inside(COVER, program) == "False True"
