"""What tests on a real Kubernetes need of a machine, said in one sentence for all of them."""

import os
import shutil
from functools import cache
from pathlib import Path

from tests.cluster.kube import binaries

# Debian's own, which pods of a whole cluster run unmodified and by which the link between its nodes is looked at.
PROGRAMS = {
    "nginx": "nginx-light",
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "curl": "curl",
    "openssl": "openssl",
    "tcpdump": "tcpdump",
    "tshark": "tshark",
}
MODULES = ("kubernetes", "coredns", "helm")


def image() -> Path:
    """Where `make image` puts the project's image."""
    cache_folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CULVERT_TEST_IMAGE") or Path(cache_folder) / "culvert" / "image" / "culvert.tar")


@cache
def lacking() -> str:
    """Everything that this machine lacks, and what to run; empty: nothing."""
    faults = [] if os.geteuid() == 0 else ["not root"]
    try:
        binaries.check_system()
    except binaries.Missing as missing:
        faults += missing.lines
    faults += [
        f"{program} is missing: apt-get install {package}"
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=binaries.SEARCHED) is None
    ]
    if absent := [module for module in MODULES if not binaries.folder(module).is_dir()]:
        faults.append(f"{', '.join(absent)} not built yet ({_go()})")
    if not image().exists():
        faults.append("the project's image is not built yet")
    return f"no real Kubernetes here: {'; '.join(faults)}. Run `make test-cluster`" if faults else ""


def _go() -> str:
    try:
        binaries.go()
    except binaries.Missing as missing:
        return str(missing)
    return "some minutes, once"
