"""The demo's lab as its claims use it: commands in pods, objects, logs, figures, a capture between the nodes.

Commands run through `culvert lab exec`, as a user's would.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lab import client, manifests
from lab.choice import LabError
from lab.paths import LabPaths

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
APPS = HERE / "apps"
MANIFESTS = HERE / "manifests"
ROOT = HERE.parent.parent
COMMAND_TIMEOUT_S = 30.0


class StageFault(Exception):
    """Something that a claim needs could not be done."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said last, in one line."""
        text = (self.out.strip() or self.err.strip()).splitlines()
        return f"{text[-1] if text else ''} (exit {self.status})"


class Stage:
    """One lab, by name."""

    # How long it may take until what was killed has been started again, and from then on until connections work
    # (loading Python is part of that).
    restart_s = 4.0
    recovery_s = 1.0

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.client = "shop/client"

    @property
    def folder(self) -> Path:
        """Where captures may be written."""
        return LabPaths(self.lab).root

    def command(self, target: str, *argv: str) -> list[str]:
        """The command line of a command in a pod."""
        return [sys.executable, "-m", "cli", "lab", "exec", "--no-tty", "--lab", self.lab, target, "--", *argv]

    def run(self, target: str, *argv: str, text: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> Done:
        """Run a command to its end."""
        try:
            done = subprocess.run(
                self.command(target, *argv),
                input=text,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                env=environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise StageFault(f"{target}: {' '.join(argv)} has not ended within {timeout_s:g} s") from error
        return Done(done.returncode, done.stdout, done.stderr)

    def dial(self, target: str, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> dict[str, Any]:
        """Run the demo's client program and return what it saw."""
        done = self.run(target, "python3", str(APPS / "dial.py"), *arguments, timeout_s=timeout_s)
        try:
            seen: dict[str, Any] = json.loads(done.out)
        except ValueError as error:
            raise StageFault(f"dial {' '.join(arguments)} from {target}: {done.words}") from error
        return seen

    @contextmanager
    def held(self, target: str, host: str, port: int) -> Iterator["Held"]:
        """A connection that stays open: each `say` must come back."""
        process = subprocess.Popen(
            self.command(target, "python3", str(APPS / "dial.py"), "hold", host, str(port)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        try:
            yield Held(process)
        finally:
            process.terminate()
            process.communicate()

    def status(self) -> dict[str, Any]:
        """`lab status --json`."""
        return self._order("status")

    def pod(self, path: str) -> dict[str, Any]:
        """One pod of it."""
        found = [p for p in self.status()["pods"] if f"{p['namespace']}/{p['name']}" == path]
        if not found:
            raise StageFault(f"there is no pod {path}")
        return dict(found[0])

    def vips(self, name: str) -> list[str]:
        """The addresses of a service of namespace shop."""
        return next(list(s["ips"]) for s in self.status()["services"] if s["name"] == name)

    def apply(self, text: str) -> None:
        """Apply manifests given as text."""
        objects, faults = manifests.parse(text, "demo")
        refused = [o for o in self._order("apply", objects=objects)["outcomes"] if o["outcome"] == "refused"]
        if faults or refused:
            raise StageFault(f"not applied: {faults or refused}")

    def delete(self, kind: str, path: str) -> None:
        """Delete an object."""
        self._order("delete", kind=kind, path=path)

    def label(self, namespace: str, value: str | None) -> None:
        """Enrol a namespace, or not."""
        self._order("label", kind="namespace", path=namespace, changes={"culvert.io/mesh": value})

    def component(self, node: str, name: str) -> dict[str, Any]:
        """How a component of a node is."""
        found = next(n for n in self.status()["nodes"] if n["name"] == node)
        return dict(found["components"][name])

    def log(self, node: str, since: int = 0) -> str:
        """What a node's ztunnel wrote, from a position on."""
        path = LabPaths(self.lab).logs / "nodes" / node / "ztunnel.log"
        return path.read_bytes()[since:].decode(errors="replace")

    def log_end(self, node: str) -> int:
        """The position of what a node's ztunnel writes next."""
        return (LabPaths(self.lab).logs / "nodes" / node / "ztunnel.log").stat().st_size

    def metrics(self, node: str) -> str:
        """A scrape of a node's ztunnel."""
        done = self.run(f"node/{node}", "curl", "-sS", "-m", "5", "http://127.0.0.1:15020/metrics")
        if done.status:
            raise StageFault(f"no metrics on {node}: {done.words}")
        return done.out

    @contextmanager
    def capture(self, expression: str = "") -> Iterator[Path]:
        """A packet capture on the link between the nodes, complete when the block ends."""
        path = self.folder / f"capture-{time.monotonic_ns()}.pcap"
        command = self.command(
            "fabric", "tcpdump", "--immediate-mode", "-Z", "root", "-U", "-s0", "-i", "n1", "-w", str(path), expression
        )
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()
        )
        assert process.stderr is not None
        if not any(b"listening" in line for line in iter(process.stderr.readline, b"")):
            raise StageFault("tcpdump does not start")
        try:
            yield path
            time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)

    def _order(self, do: str, **arguments: Any) -> dict[str, Any]:
        try:
            return client.order(self.lab, do, **arguments)
        except LabError as error:
            raise StageFault(str(error)) from error


class Held:
    """An open connection in a pod."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.opened = self._line()

    def say(self, word: str) -> str:
        """Send a word and return what comes back, or why the connection is closed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return "closed"
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def until(seconds: float, look: Callable[[], T]) -> tuple[T, float]:
    """Look until what is seen is true or time is up; what was seen last, and after how long."""
    start = time.monotonic()
    while True:
        seen = look()
        passed = time.monotonic() - start
        if seen or passed > seconds:
            return seen, passed
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Of the commands: as the user's, and with this checkout's modules."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}
