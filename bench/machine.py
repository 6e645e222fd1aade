"""The machine a benchmark runs on: what it is, how busy it is, and what processes use of it."""

import os
import resource
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


_SOURCES = ("bpf", "engine", "ztunnel", "lab", "controller", "mesh")


def facts() -> dict[str, Any]:
    """What a result must name to be compared with another one."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--", *_SOURCES).splitlines()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": os.uname().release,
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
    }


def _processors_ms() -> tuple[float, float]:
    """Time that all processors together have been idle, and that they spent in interrupts, for whomever."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (ticks[3] + ticks[4]) * TICK_MS, (ticks[5] + ticks[6]) * TICK_MS


def busy_share(seconds: float) -> float:
    """How much of the machine is busy right now, 0 to 1, whoever it is."""
    meter = Meter()
    time.sleep(seconds)
    reading = meter.read()
    return reading.busy / reading.wall


@dataclass(frozen=True)
class Reading:
    """What all processors together did, in milliseconds. Interrupts, network softirqs included, are no process's."""

    wall: float
    busy: float
    interrupts: float
    children: float  # of it, children of ours that have ended


class Meter:
    """What the machine does from here on."""

    def __init__(self) -> None:
        self._idle, self._interrupts = _processors_ms()
        self._children = _children_ms()
        self._began = time.monotonic()

    def read(self) -> Reading:
        """Until now."""
        wall = (time.monotonic() - self._began) * 1000 * (os.cpu_count() or 1)
        idle, interrupts = _processors_ms()
        busy = max(0.01, wall - (idle - self._idle))
        return Reading(wall, busy, interrupts - self._interrupts, _children_ms() - self._children)


def wait_until_quiet(patience_s: float, limit: float = 0.08) -> float:
    """Wait for others to be done; how busy the machine still was when patience ended or it was quiet."""
    deadline = time.monotonic() + patience_s
    while (share := busy_share(0.5)) > limit and time.monotonic() < deadline:
        pass
    return share


def _children_ms() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000


def cpu_ms(pids: Iterable[int]) -> float:
    """Processor time of processes so far, user and kernel, exact."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                total += int(task.read_text().split()[0])
    return total / 1e6


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory of a process, all of it and its share of what others map too."""
    wanted = {"Rss": "rss", "Pss": "pss", "Pss_Anon": "anonymous"}
    found: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            found[wanted[name]] = round(int(rest.split()[0]) / 1024, 2)
    return found


def pin(pids: Iterable[int], cpus: Iterable[int]) -> None:
    """Let processes, with all their threads, run on these processors only."""
    chosen = set(cpus)
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), chosen)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    ).stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
