"""What the command line does with labs: find one, start one, take one down, ask its supervisor.

A lab's directory is locked (flock) for as long as its supervisor lives, so that "is it alive" has one answer, also in
the moment between `lab up` and the first order.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lab.ask import Refused, SupervisorGone, ask
from lab.choice import LabError
from lab.names import lab_fault
from lab.paths import LabPaths
from lab.span.options import Span

START_DEADLINE_S = 20.0
# Knocking at the home (lab.span.joined), its credentials, and the node.
JOIN_DEADLINE_S = 45.0
DOWN_DEADLINE_S = 30.0


def is_alive(lab: str) -> bool:
    """Whether a lab has a supervisor."""
    with _locked(lab) as free:
        return not free


def order(lab: str, do: str, timeout_s: float = 60.0, **arguments: Any) -> dict[str, Any]:
    """Have a lab's supervisor do something; raises LabError."""
    try:
        return ask(LabPaths(lab).control, {"do": do, **arguments}, timeout_s)
    except Refused as error:
        raise LabError(str(error)) from error
    except SupervisorGone as error:
        if not LabPaths(lab).root.exists():
            raise LabError(f"lab {lab!r} is gone: it was taken down meanwhile") from error
        if is_alive(lab):
            raise LabError(f"lab {lab!r} takes no orders now, it is being started or taken down: {error}") from error
        raise LabError(
            f"the supervisor of lab {lab!r} has died: `culvert lab down --lab {lab}` removes the rest"
        ) from error


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How a lab is started."""

    with_mesh: bool = True
    settings: str = "{}"
    span: Span = field(default_factory=Span)


def start(lab: str, options: StartOptions) -> None:
    """Start a lab's supervisor and wait until it takes orders; raises LabError and then leaves nothing."""
    fault = lab_fault(lab)
    if fault:
        raise LabError(fault)
    if os.geteuid() != 0:
        raise LabError("a lab makes network namespaces: run this as root")
    own = LabPaths(lab)
    own.root.mkdir(parents=True, exist_ok=True)
    with _locked(lab) as free:
        if not free:
            raise LabError(f"lab {lab!r} is up already: `culvert lab apply -f DIR --lab {lab}` changes it")
        if own.record.exists():
            _sweep(lab)  # its supervisor was killed; this takes the directory and its lock away
    own.root.mkdir(parents=True, exist_ok=True)
    with (own.root / "supervisor.log").open("a+b") as log:  # held: a supervisor that fails removes it with the rest
        process = _spawn(own, options, log)
        try:
            _wait_answering(own, process, log, JOIN_DEADLINE_S if options.span.join else START_DEADLINE_S)
        except BaseException:  # also Ctrl-C
            process.kill()
            process.wait()
            _sweep(lab)
            raise


def _wait_answering(own: LabPaths, process: "subprocess.Popen[bytes]", log: BinaryIO, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            ask(own.control, {"do": "ping"}, 5.0)
            return
        except (SupervisorGone, Refused) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"lab {own.lab!r} cannot be started: {_tail(log) or error}") from error
        time.sleep(0.02)


def take_down(lab: str) -> list[str]:
    """End a lab and remove all of it; returns what could not be removed."""
    own = LabPaths(lab)
    deadline = time.monotonic() + DOWN_DEADLINE_S
    while is_alive(lab) and not _end(own):  # one that is being started answers soon, one that ends is gone soon
        if time.monotonic() > deadline:
            raise LabError(f"lab {lab!r} is held by a supervisor that does not answer; end it and try again")
        time.sleep(0.05)
    if own.root.exists():
        return _sweep(lab)
    return []


def _end(own: LabPaths) -> bool:
    """Tell a supervisor to end and wait until it has; False when it does not listen."""
    try:
        supervisor = os.pidfd_open(ask(own.control, {"do": "ping"}, 5.0)["pid"])
    except (SupervisorGone, Refused, OSError):
        return False
    with suppress(SupervisorGone, Refused, OSError):
        ask(own.control, {"do": "down"}, 5.0)
    _wait_ended(supervisor)
    return True


def wait_ready(lab: str, timeout_s: float, progress: Callable[[str], None], only: set[str] | None = None) -> list[str]:
    """Wait for pods to become ready or finished, and for every node to know; returns what is missing, a line each."""
    deadline = time.monotonic() + timeout_s
    shown: set[str] = set()
    while True:
        status = order(lab, "status")
        # A machine that has not joined yet may do so tomorrow.
        pods = [p for p in status["pods"] if not p["away"] and (only is None or _path(p) in only)]
        for pod in pods:
            if is_settled(pod) and _path(pod) not in shown:
                shown.add(_path(pod))
                progress(f"pod {_path(pod)} on {pod['node']} is {_word(pod)} ({', '.join(pod['ips'])})")
        waiting = [pod for pod in pods if not is_settled(pod)]
        others = status["mesh"]["waiting_for"] if only is None else []
        if not (waiting or others):
            others = not_announced(lab)
        if not (waiting or others) or time.monotonic() > deadline:
            failed = [pod for pod in pods if pod["phase"] == "Failed"]
            return [f"pod {_path(pod)} on {pod['node']}: {why(pod)}" for pod in (*waiting, *failed)] + others
        time.sleep(0.1)


def wait_labelled(lab: str, timeout_s: float, is_meant: Callable[[dict[str, Any]], bool]) -> list[str]:
    """Wait for the pods that are meant to be captured or let go as their labels ask, and for every node to know."""
    deadline = time.monotonic() + timeout_s
    while True:
        pods = [pod for pod in order(lab, "status")["pods"] if is_meant(pod) and not pod["away"]]
        waiting = [f"pod {_path(pod)} on {pod['node']}: {why(pod)}" for pod in pods if not is_in_mesh_as_asked(pod)]
        missing = waiting or not_announced(lab)
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.1)


def not_announced(lab: str) -> list[str]:
    """What of a lab's pods, services and policies some node does not know yet, one line each; waits a moment."""
    found: list[str] = order(lab, "announced")["missing"]
    return found


def refused_by_controller(lab: str, objects: set[str] | None = None) -> list[str]:
    """What the controller makes nothing of, a line each; of all objects, or of these."""
    found = order(lab, "announced")["refused"]
    return [f"{one['object']}: {one['why']}" for one in found if objects is None or one["object"] in objects]


def wait_announced(lab: str, timeout_s: float) -> list[str]:
    """Wait until every node knows all objects as they are now; returns what is missing when time is over."""
    deadline = time.monotonic() + timeout_s
    while (missing := not_announced(lab)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return missing


def is_settled(pod: dict[str, Any]) -> bool:
    """Whether nothing more is to be waited for."""
    return pod["phase"] in ("Succeeded", "Failed") or (pod["ready"] and pod["mesh"].get("settled", True))


def is_in_mesh_as_asked(pod: dict[str, Any]) -> bool:
    """Whether a pod is captured or let go as its labels ask; of one that does not run nothing is asked."""
    return pod["phase"] != "Running" or bool(pod["mesh"].get("settled", True))


def why(pod: dict[str, Any]) -> str:
    """Why a pod is not as it should be."""
    mesh = pod["mesh"]
    if pod["ready"] and not mesh.get("settled", True):
        goal = "captured" if mesh["asked"] else "let go"
        return f"runs, but is not {goal} yet: {mesh['state']} {mesh['reason']}".rstrip()
    return str(pod["why"])


def _word(pod: dict[str, Any]) -> str:
    return "ready" if pod["ready"] else pod["phase"].lower()


def _path(pod: dict[str, Any]) -> str:
    return f"{pod['namespace']}/{pod['name']}"


def _spawn(own: LabPaths, options: StartOptions, log: BinaryIO) -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parent.parent)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": root,
        "LANG": "C.UTF-8",
    }
    command = [sys.executable, "-m", "lab.supervisor", "--lab", own.lab, "--settings", options.settings]
    command += ["--span", options.span.to_json()]
    lock = os.open(own.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # handed on: it falls when the supervisor ends
        return subprocess.Popen(
            command if options.with_mesh else [*command, "--no-mesh"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment,
            start_new_session=True,
            pass_fds=(lock,),
        )
    except BlockingIOError as error:
        raise LabError(f"lab {own.lab!r} is being started by somebody else") from error
    finally:
        os.close(lock)


@contextmanager
def _locked(lab: str) -> Iterator[bool]:
    """Try to take a lab's lock; whether it was free."""
    try:
        fd = os.open(LabPaths(lab).root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
    finally:
        os.close(fd)


def _wait_ended(supervisor: int) -> None:
    """Wait for the process of a pidfd; one that hangs is killed."""
    try:
        if not select.select([supervisor], [], [], DOWN_DEADLINE_S)[0]:
            signal.pidfd_send_signal(supervisor, signal.SIGKILL)
            select.select([supervisor], [], [], DOWN_DEADLINE_S)
    finally:
        os.close(supervisor)


def _sweep(lab: str) -> list[str]:
    from lab.cleanup import sweep  # noqa: PLC0415  only when a lab ends

    return sweep(lab)


def _tail(log: BinaryIO, lines: int = 5) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
