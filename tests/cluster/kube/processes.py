"""Daemons of a cluster: started inside a namespace, logged to a file, found again by a later command."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.cluster.kube import cgroups
from tests.cluster.kube.place import Place

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Ended(Exception):
    """A daemon that should run has ended; the text ends with what it said last."""


class Daemons:
    """Starts the daemons of one cluster and watches over their first steps."""

    def __init__(self, cluster: Place) -> None:
        self._cluster = cluster
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        cluster.logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, netns: Path, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start a daemon. Its namespace is entered without a new mount namespace: a remounted /sys has no cgroups."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net={netns}", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": PATH, "HOME": "/root", **(env or {})},
                cwd="/",
                start_new_session=True,
            )
        cgroups.put(self._cluster.name, name, process.pid)
        self._running[name] = process
        (self._cluster.state / f"{name}.pid").write_text(str(process.pid))

    def log(self, name: str) -> Path:
        """What a daemon prints."""
        return self._cluster.logs / f"{name}.log"

    def pids(self) -> dict[str, int]:
        """Those that run, by name."""
        return {name: process.pid for name, process in self._running.items()}

    def check(self) -> None:
        """Raise Ended if one of them has gone."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise Ended(f"{name} ended with status {process.returncode}:\n{tail(self.log(name))}")

    def reap(self) -> None:
        """Take notice that all have ended, by whoever ended them."""
        for process in self._running.values():
            process.wait(10)
        self._running.clear()

    def cut(self, *names: str) -> None:
        """End daemons, and everything that they have started, as a machine does whose power fails."""
        for name in names:
            left = cgroups.kill(f"{self._cluster.name}/{cgroups.DAEMONS}/{name}")
            assert not left, f"processes of {name} do not end: {left}"
            self._running.pop(name).wait(10)

    def stop(self, name: str, deadline_s: float = 10.0) -> None:
        """End one daemon, kindly first."""
        process = self._running.pop(name)
        process.terminate()
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def wait_until(what: str, is_so: Callable[[], bool], deadline_s: float, daemons: Daemons | None = None) -> None:
    """Poll until something is so; raises TimeoutError naming it, or Ended."""
    deadline = time.monotonic() + deadline_s
    while not is_so():
        if daemons is not None:
            daemons.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(0.1)


def in_namespace(netns: Path, argv: Sequence[str], **options: object) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end inside a namespace."""
    return subprocess.run(["nsenter", f"--net={netns}", *argv], text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]
