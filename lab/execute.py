"""`lab exec`: runs a command inside a pod, a node or the fabric as if it had been started there.

Without a terminal the command gets the caller's own descriptors: no byte passes through this process. With one, it gets
a pseudo-terminal of its own and this process relays. Between the caller and the command stands a guard: signals reach
the command's process group through it, and when the caller is killed, it ends the group, so that nothing is left over.
The guard stays outside the pod's process namespace and so is invisible (and unreachable) in there. It has a process
group of its own, too: what a terminal sends to the caller's group (Ctrl-C, Ctrl-Z) it hears once, from the caller.

Imports little on purpose: every `lab exec` pays for it.
"""

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lab import launch, paths
from lab.paths import LabPaths

FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
)
# Ctrl-Z: the command is in a session of its own, where the kernel would ignore this; so it is stopped outright.
SUSPENDED = signal.SIGTSTP
# Nobody else sends it: the kernel tells the guard by it that the caller is dead.
CALLER_DIED = signal.SIGRTMAX - 3
# By the guard.
HEARD = (*FORWARDED, SUSPENDED, CALLER_DIED, signal.SIGCHLD)

# How many names an error lists: near ones, or all there are.
MOST_NEAR, MOST_SHOWN = 3, 10

END_OF_INPUT = b"\x04"  # what a terminal makes of Ctrl-D
CHUNK_BYTES = 64 * 1024

_ENDED = "the pod has ended meanwhile; `culvert lab status` shows what became of it"


class NoSuchTarget(Exception):
    """There is nothing of this name to run a command in."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a command runs. `pid` is the pod's first process; without one only the network namespace is entered."""

    netns: str
    env: dict[str, str]
    cwd: str = "/"
    pid: int | None = None
    start_time: str | None = None
    uid: int | None = None
    gid: int | None = None


def find(lab: str, target: str, container: str | None) -> Target:
    """What `NS/POD`, `node/NODE` or `fabric` stands for; raises NoSuchTarget."""
    own = LabPaths(lab)
    if target == "fabric" or target.startswith("node/"):
        return _node_target(own, target)
    namespace, _, name = target.rpartition("/")
    entry = paths.read_json(own.pod_entry(namespace or "default", name)) if "/" not in namespace else None
    if entry is not None and "elsewhere" in entry:
        raise NoSuchTarget(f"pod {target} runs on {entry['elsewhere']}, which is another machine: say this there")
    if entry is None or entry["pid"] is None:
        raise NoSuchTarget(f"no pod {namespace or 'default'}/{name} runs in lab {lab!r}{_near(own, target)}")
    containers = entry["containers"]
    if container is not None and container not in containers:
        raise NoSuchTarget(f"pod {target} has no container {container!r}, only {', '.join(containers)}")
    inside = containers[container] if container is not None else next(iter(containers.values()))
    return Target(
        netns=entry["netns"],
        env=inside["env"],
        cwd=inside["cwd"],
        pid=entry["pid"],
        start_time=entry["start_time"],
        uid=inside["uid"],
        gid=inside["gid"],
    )


def _near(own: LabPaths, target: str) -> str:
    """What may have been meant: pods of that name elsewhere, or with a name or path like it."""
    import difflib  # noqa: PLC0415  only a wrong name needs it

    known = sorted(entry.stem.replace("_", "/", 1) for entry in own.pods.glob("*.json"))
    name = target.rpartition("/")[2]
    same = [path for path in known if path.rpartition("/")[2] == name]
    alike = difflib.get_close_matches(target, known, MOST_NEAR) + [
        path for path in known if difflib.get_close_matches(name, [path.rpartition("/")[2]], 1)
    ]
    found = list(dict.fromkeys((*same, *alike)))[:MOST_NEAR]
    if found:
        return f"; did you mean {' or '.join(found)}?"
    shown = ", ".join(known[:MOST_SHOWN]) + (f" and {len(known) - MOST_SHOWN} more" if len(known) > MOST_SHOWN else "")
    return f"; these do: {shown}" if known else "; none does"


def run(target: Target, argv: list[str], terminal: bool) -> int:
    """Run a command and return its exit status; 128 + n when signal n ended it. Raises NoSuchTarget."""
    env = dict(target.env)
    if terminal:
        env["TERM"] = os.environ.get("TERM", "xterm")
    pidfd = _hold(target)
    netns = os.open(target.netns, os.O_RDONLY | os.O_CLOEXEC) if target.pid is None else -1
    master, slave = os.openpty() if terminal else (-1, -1)
    if terminal:
        _copy_size(master)
    signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, SUSPENDED, signal.SIGWINCH))
    caller = os.getpid()
    guard = os.fork()
    if guard == 0:
        if terminal:
            os.close(master)
        _guard(target, argv, env, (pidfd, netns, slave), caller)
    for fd in (pidfd, netns, slave):
        if fd >= 0:
            os.close(fd)
    for number in FORWARDED:
        signal.signal(number, lambda got, _: _send(guard, got))
    signal.signal(SUSPENDED, lambda *_: _suspend(guard))
    if terminal:
        signal.signal(signal.SIGWINCH, lambda *_: _copy_size(master))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if terminal:
        return _relay(master, guard)
    _, status = os.waitpid(guard, 0)
    return _exit_status(status)


def _node_target(own: LabPaths, target: str) -> Target:
    names = (paths.read_json(own.record) or {}).get("names", {})
    if target not in names:
        known = ", ".join(sorted(names)) or "none"
        raise NoSuchTarget(f"lab {own.lab!r} has no {target}; it has {known}")
    return Target(netns=str(paths.NETNS / names[target]), env=dict(os.environ), cwd=str(Path.cwd()))


def _hold(target: Target) -> int:
    """A pidfd of the pod's first process, or -1; the start time tells it from a later process of the same number."""
    if target.pid is None:
        return -1
    gone = NoSuchTarget(_ENDED)
    try:
        pidfd = os.pidfd_open(target.pid)
        text = Path(f"/proc/{target.pid}/stat").read_text()
    except OSError:
        raise gone from None
    if text.rpartition(")")[2].split()[19] != target.start_time:
        raise gone
    return pidfd


def _guard(target: Target, argv: list[str], env: dict[str, str], fds: tuple[int, int, int], caller: int) -> NoReturn:
    """The process between caller and command; never returns. Signals are still blocked."""
    pidfd, _, slave = fds
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        os.setpgid(0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may ignore it, and then nobody hears of the end
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may say why it fails on a terminal that is not its group's
        launch.die_with_parent(CALLER_DIED)
        if os.getppid() != caller:
            os._exit(1)
        if pidfd >= 0:
            launch.setns(pidfd, launch.CLONE_NEWPID, "the pod's process namespace")
        command = os.fork()
        if command == 0:
            _become(target, argv, env, fds)
        if slave >= 0:
            os.close(slave)
        _stand_guard(command)
    except ProcessLookupError:
        launch.fail(_ENDED, 1)
    except BaseException as error:  # a fork must never return into the caller's code
        launch.fail(str(error), 1)


def _stand_guard(command: int) -> NoReturn:
    """Pass on what is heard until the command ends.

    By waiting for signals, not by handlers: the kernel lets SIGCONT and SIGTSTP cancel each other while they wait, an
    interpreter with both at hand runs them in the order of their numbers.
    """
    for fd in (0, 1, 2):  # the command's alone: a reader must see the end when the command closes them
        os.close(fd)
    while True:
        number = signal.sigwait(HEARD)
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(command, os.WNOHANG)
            if ended:
                os._exit(_exit_status(status))
        elif number == CALLER_DIED:
            _send_group(command, signal.SIGKILL)
            os._exit(128 + signal.SIGKILL)
        else:
            _send_group(command, signal.SIGSTOP if number == SUSPENDED else number)


def _send_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:  # it does not lead one yet
        _send(leader, number)


def _become(target: Target, argv: list[str], env: dict[str, str], fds: tuple[int, int, int]) -> NoReturn:
    """The command's own process: a session of its own, its namespaces, its user, then exec."""
    pidfd, netns, slave = fds
    try:
        launch.die_with_parent()
        os.setsid()
        if pidfd >= 0:
            launch.setns(pidfd, launch.CLONE_NEWNET | launch.CLONE_NEWUTS | launch.CLONE_NEWNS, "the pod's namespaces")
        else:
            launch.setns(netns, launch.CLONE_NEWNET, "the network namespace")
        if slave >= 0:
            _take_terminal(slave)
        os.chdir(target.cwd)
        launch.become_user(target.uid, target.gid)
    except OSError as error:
        launch.fail(str(error), 1)
    launch.reset_signals((*FORWARDED, SUSPENDED, signal.SIGTTOU, signal.SIGWINCH, CALLER_DIED))
    launch.execute(argv, env)


def _take_terminal(slave: int) -> None:
    import fcntl  # noqa: PLC0415  only a terminal needs it
    import termios  # noqa: PLC0415

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)


def _copy_size(master: int) -> None:
    import fcntl  # noqa: PLC0415  only a terminal needs it
    import termios  # noqa: PLC0415

    for fd in (0, 1, 2):
        with suppress(OSError):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
            return


def _relay(master: int, guard: int) -> int:
    """Carry bytes between the caller's descriptors and the terminal until the command has ended."""
    import termios  # noqa: PLC0415  only a terminal needs them
    import tty  # noqa: PLC0415

    saved = termios.tcgetattr(0) if os.isatty(0) else None
    if saved is not None:
        tty.setraw(0)
    ended = os.pidfd_open(guard)
    try:
        _relay_until(master, ended)
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSAFLUSH, saved)
    _, status = os.waitpid(guard, 0)
    return _exit_status(status)


def _relay_until(master: int, ended: int) -> None:
    pending, input_open, output_open = b"", True, True
    left_after_end = 256  # chunks: what a background process still writes must not hold the caller for ever
    while left_after_end:
        reading = [ended] + [master] * output_open + [0] * (input_open and len(pending) < CHUNK_BYTES)
        ready, writable, _ = select.select(reading, [master] * bool(pending), [])
        if writable:
            pending = pending[os.write(master, pending[:1024]) :]
        if 0 in ready:
            data = os.read(0, CHUNK_BYTES)
            input_open = bool(data)
            pending += data or END_OF_INPUT
        if master in ready:
            output_open = _pass_on(master)
        if ended in ready:
            if master not in ready:
                return
            left_after_end -= 1


def _pass_on(master: int) -> bool:
    try:
        data = os.read(master, CHUNK_BYTES)
    except OSError:  # EIO: the last process has closed the terminal
        return False
    while data:
        data = data[os.write(1, data) :]
    return True


def _suspend(guard: int) -> None:
    """Stop as everything that a terminal starts does."""
    _send(guard, SUSPENDED)
    os.kill(os.getpid(), signal.SIGSTOP)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def wants_terminal(asked: bool | None) -> bool:
    """A terminal when asked for; by default when the caller stands at one."""
    if asked is not None:
        return asked
    return os.isatty(0) and os.isatty(1)
