"""The lock under which a node's pins are changed: by the loader, and by a plane that pins a pod's link."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bpf.paths import NodePaths


@contextmanager
def changing(paths: NodePaths) -> Iterator[None]:
    """Hold the node's lock. The file stays: removing it would let two holders in."""
    paths.state.mkdir(parents=True, exist_ok=True)
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
