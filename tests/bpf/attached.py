"""What runs at the cgroup root of this machine, asked of the kernel."""

import os
from contextlib import suppress

from bpf import cgroup, kernel
from bpf.loader.specs import PROGRAMS
from bpf.paths import BPFFS, escape
from tests.bpf.topology import prefix


def foreign() -> set[int]:
    """Programs of sets that are not this run's: somebody's lab may come and go on this machine meanwhile."""
    found = set()
    for path in (BPFFS / "culvert").glob("*/*/progs/*"):
        if path.parts[-4].startswith(escape(prefix())):
            continue
        with suppress(OSError):
            fd = kernel.open_pin(path)
            found.add(kernel.program_info(fd).id)
            os.close(fd)
    return found


def attached() -> dict[str, set[int]]:
    """What the kernel says runs at the root, per program of ours by its hook."""
    others = foreign()
    root = cgroup.open_root()
    try:
        found = {spec.name: set(kernel.attached_programs(root, spec.attach_type)) for spec in PROGRAMS if spec.at_root}
    finally:
        os.close(root)
    others |= foreign()
    return {name: programs - others for name, programs in found.items()}
