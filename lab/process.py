"""Child processes of the supervisor: started in their namespaces through `launch`, watched by pidfd.

No thread waits for a child and nothing runs between fork and exec in this process. Must be called on the main thread:
the death signal that ties a child to the supervisor is tied to the thread that forked it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import launch

_LAUNCHER = [sys.executable, "-I", "-S", str(Path(launch.__file__).resolve())]

# A container gets the environment of a container, not of whoever started the lab.
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """A program and where it runs; paths of namespaces are the host's."""

    argv: list[str] = field(default_factory=list)
    namespaces: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    uid: int | None = None
    gid: int | None = None
    sandbox: dict[str, Any] | None = None


class Child:
    """A running child; `wait` may be called by several tasks."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self._popen = popen
        self.pid = popen.pid
        self._pidfd = os.pidfd_open(popen.pid)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def running(self) -> bool:
        """Whether it has not been reaped yet."""
        return not self._ended.done()

    async def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.running:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, a grace, SIGKILL; returns when it is gone."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(self._popen.wait())


@contextmanager
def _children_in(pid_namespace: int | None, fresh: bool) -> Iterator[None]:
    """Children forked meanwhile are born in another process namespace; this thread itself stays where it is."""
    if pid_namespace is None and not fresh:
        yield
        return
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if fresh:
            launch.unshare(launch.CLONE_NEWPID)
        else:
            assert pid_namespace is not None
            launch.setns(pid_namespace, launch.CLONE_NEWPID, "the pod's process namespace")
        yield
    finally:
        launch.setns(own, launch.CLONE_NEWPID, "the own process namespace")
        os.close(own)


def spawn(order: Launch, log: Path | None, pid_namespace: int | None = None, pass_fds: tuple[int, ...] = ()) -> Child:
    """Start a program; its output is appended to `log`, or discarded. A sandbox gets a new process namespace."""
    argument = json.dumps(
        {
            "argv": order.argv,
            "namespaces": order.namespaces,
            "env": order.env,
            "cwd": order.cwd,
            "uid": order.uid,
            "gid": order.gid,
            "sandbox": order.sandbox,
        }
    )
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with _children_in(pid_namespace, fresh=order.sandbox is not None):
            popen = subprocess.Popen(
                [*_LAUNCHER, argument],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=pass_fds,
            )
    finally:
        os.close(output)
    return Child(popen)


def status_text(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def start_time(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()[19]
