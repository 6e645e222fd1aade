"""What people ask of a node's agent from outside it: upgrade the programs, unload them, show the status."""

import asyncio
import json
from pathlib import Path
from typing import Any

from daemonset.cni import install
from daemonset.lock import running_agent
from daemonset.programs import run_loader

LOADER_TIMEOUT_S = 120.0


class CommandRefused(Exception):
    """The command would do harm as things are; the text says what to do."""


def upgrade_bpf(key: str) -> str:
    """Swap a node's programs in place, connections go on; what was done. Raises LoadFailed."""
    return asyncio.run(run_loader("upgrade", key, LOADER_TIMEOUT_S)).strip()


def unload(key: str, runtime: Path, *, force: bool = False) -> str:
    """Detach and remove everything that is pinned for a node; what was done. Raises CommandRefused, LoadFailed.

    Pods of the node are outside the mesh afterwards. A running agent would load the programs again, so it must be
    stopped before, unless `force`.
    """
    holder = running_agent(runtime)
    if holder and not force:
        raise CommandRefused(f"the agent of node {key} runs (pid {holder}) and would load again: stop it first")
    return asyncio.run(run_loader("unload", key, LOADER_TIMEOUT_S)).strip()


def remove_cni(conf_dir: Path, bin_dir: Path) -> list[str]:
    """Take the CNI plugin and its entry from the node; what was done. Raises OSError.

    An agent that runs puts them back.
    """
    return install.remove(install.Places(Path(), bin_dir, conf_dir, Path()))


def status(runtime: Path) -> dict[str, Any]:
    """What the agent said last, and whether it runs; raises FileNotFoundError when there never was one."""
    document: dict[str, Any] = json.loads((runtime / "agent-status.json").read_text())
    return document | {"running": bool(running_agent(runtime))}
