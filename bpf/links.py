"""A pod's own links: sk_lookup on its netns, the guard on the node's ends of its network links.

Made, pinned, found again, removed. Each change holds the node's lock.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from bpf import kernel
from bpf.ends import Ends, ends_of
from bpf.lock import changing
from bpf.paths import NodePaths

ATTACH_SK_LOOKUP, ATTACH_TCX_INGRESS = 36, 46  # enum bpf_attach_type
_BEFORE_ALL = 1 << 3  # BPF_F_BEFORE without another program: a CNI's programs may end the chain


def attach(paths: NodePaths, netns: int, netns_fd: int) -> None:
    """Steer what arrives in a netns. A link that is there and alive stays; a dead one is replaced."""
    path = paths.inbound(netns)
    with changing(paths):
        if not _is_alive(path):
            _replace(paths, "inbound", path, netns_fd, ATTACH_SK_LOOKUP)


def attach_guard(paths: NodePaths, netns: int, netns_fd: int) -> Ends:
    """Guard what leaves a netns, where its links end in the caller's; returns where that is, and what has no end.

    A guard that stands stays, also where the pod has hidden its own end in a namespace nested in it. Raises OSError,
    ENODEV included when an end went meanwhile.
    """
    with changing(paths):
        ends = ends_of(netns_fd)
        for path in _guards(paths, netns):
            if not _is_alive(path):
                path.unlink()
        for index in ends.indexes:
            path = paths.guard(netns, index)
            if not _is_alive(path):
                _replace(paths, "guard", path, index, ATTACH_TCX_INGRESS, _BEFORE_ALL)
    return ends


def detach_guard(paths: NodePaths, netns: int) -> bool:
    """Remove a pod's guard; False when it had none."""
    with changing(paths):
        return [kernel.link_remove(path) for path in _guards(paths, netns)].count(True) > 0


def is_guarded(paths: NodePaths, netns: int, indexes: Iterable[int] = ()) -> bool:
    """Whether the pod has a guard, it stands on these ends, and every link that it was put on still exists."""
    guards = _guards(paths, netns)
    has_all = all(paths.guard(netns, index) in guards for index in indexes)
    return bool(guards) and has_all and all(_is_alive(path) for path in guards)


def detach(paths: NodePaths, netns: int) -> bool:
    """Remove a pod's links, guard first; False when it had none that steers."""
    path = paths.inbound(netns)
    with changing(paths):
        for guard in _guards(paths, netns):
            kernel.link_remove(guard)
        had = kernel.link_remove(path)
        if path.parent.exists():
            path.parent.rmdir()
        return had


def alive(paths: NodePaths) -> dict[int, bool]:
    """Pods with a pinned link by netns cookie, and whether the netns still lives."""
    if not paths.pods.is_dir():
        return {}
    cookies = [int(entry.name) for entry in paths.pods.iterdir() if entry.name.isdecimal()]
    return {cookie: _is_alive(paths.inbound(cookie)) for cookie in cookies}


def _guards(paths: NodePaths, netns: int) -> list[Path]:
    return sorted(paths.inbound(netns).parent.glob("guard-*"))


def _replace(paths: NodePaths, name: str, path: Path, target: int, attach_type: int, flags: int = 0) -> None:
    """Make a link anew; a pin that leads to a dead one goes."""
    path.unlink(missing_ok=True)
    program = kernel.open_pin(paths.programs / name)
    try:
        link = kernel.link_create(program, target, attach_type, flags)
    finally:
        os.close(program)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kernel.pin(link, path)
    finally:
        os.close(link)


def _is_alive(path: Path) -> bool:
    try:
        link = kernel.open_pin(path)
    except FileNotFoundError:
        return False
    try:
        return kernel.link_info(link).target != 0
    finally:
        os.close(link)
