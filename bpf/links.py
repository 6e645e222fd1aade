"""A pod's sk_lookup link on its netns: made, pinned, found again, removed. Each change holds the node's lock."""

import os
from pathlib import Path

from bpf import kernel
from bpf.lock import changing
from bpf.paths import NodePaths

ATTACH_SK_LOOKUP = 36  # enum bpf_attach_type


def attach(paths: NodePaths, netns: int, netns_fd: int) -> None:
    """Steer what arrives in a netns. A link that is there and alive stays; a dead one is replaced."""
    path = paths.inbound(netns)
    with changing(paths):
        if _is_alive(path):
            return
        path.unlink(missing_ok=True)
        program = kernel.open_pin(paths.programs / "inbound")
        try:
            link = kernel.link_create(program, netns_fd, ATTACH_SK_LOOKUP)
        finally:
            os.close(program)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kernel.pin(link, path)
        finally:
            os.close(link)


def detach(paths: NodePaths, netns: int) -> bool:
    """Remove a pod's link; False when it had none."""
    path = paths.inbound(netns)
    with changing(paths):
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


def _is_alive(path: Path) -> bool:
    try:
        link = kernel.open_pin(path)
    except FileNotFoundError:
        return False
    try:
        return kernel.link_info(link).target != 0
    finally:
        os.close(link)
