"""Becomes a program inside a node or a pod: namespaces first, then exec. Run as a script by the supervisor.

Started with `python -I -S` and the standard library alone, because it stands before every process of a lab and takes
some 15 ms that way. Its one argument is a Launch as JSON. What it starts dies with the supervisor: the death signal
survives exec, and for a pod's first process the kernel then ends the whole process namespace.

Exit status when the program cannot be started: 125 namespaces or mounts, 126 not executable, 127 not found.
"""

# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH110, PTH112, PTH118, PTH120, PTH123 -- pathlib doubles the start

import ctypes
import json
import os
import signal
import sys
from typing import Any, NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1

NAMESPACE_FLAGS = {"net": CLONE_NEWNET, "mnt": CLONE_NEWNS, "uts": CLONE_NEWUTS, "pid": CLONE_NEWPID}

# What every pod has of its own outside of /run. A minimal system need not have them.
OWN_FILES = ("/etc/hosts", "/etc/resolv.conf")

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def setns(fd: int, flags: int, what: str) -> None:
    """Enter the namespaces of a descriptor (also a pidfd)."""
    _checked(_libc.setns(fd, flags), f"entering {what}")


def unshare(flags: int) -> None:
    """New namespaces of these kinds."""
    _checked(_libc.unshare(flags), "unshare")


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this signal when the parent dies; survives exec."""
    _checked(_libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Make one mount; raises OSError that names the target."""
    _checked(
        _libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, data.encode()),
        f"mounting {target}",
    )


def become_user(uid: int | None, gid: int | None) -> None:
    """Change group and user, where one is given."""
    if gid is not None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
    if uid is not None:
        os.setresuid(uid, uid, uid)
        die_with_parent()  # a change of user clears it


def reset_signals(also: tuple[int, ...] = ()) -> None:
    """Undo what the interpreter did: a program expects default dispositions and an empty mask."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD, *also):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Become the program, found in the PATH of `env`; exits 126 or 127 with a sentence when that fails."""
    if not argv[0]:
        fail("the command is an empty word: not found", 127)
    try:
        os.execvpe(argv[0], argv, env)
    except FileNotFoundError:
        if is_there(argv[0], env):
            fail(f"{argv[0]}: is there, but the interpreter or loader that it names is not", 126)
        fail(f"{argv[0]}: not found", 127)
    except OSError as error:
        fail(f"{argv[0]}: {error.strerror}", 126)


def is_there(program: str, env: dict[str, str]) -> bool:
    """Whether the file exists that a command stands for."""
    if "/" in program:
        return os.path.exists(program)
    return any(os.path.exists(os.path.join(folder, program)) for folder in env.get("PATH", os.defpath).split(":"))


def fail(sentence: str, status: int) -> NoReturn:
    """Say why the program did not start."""
    sys.stderr.write(f"culvert lab: {sentence}\n")
    sys.stderr.flush()
    os._exit(status)


def enter(namespaces: dict[str, str]) -> None:
    """Enter namespaces given by path; the mount namespace last, because the paths are the host's."""
    opened = {kind: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for kind, path in namespaces.items()}
    for kind in sorted(opened, key=lambda kind: kind == "mnt"):
        setns(opened[kind], NAMESPACE_FLAGS[kind], f"{kind} namespace {namespaces[kind]}")


def furnish(sandbox: dict[str, Any]) -> None:
    """Make the mounts of a pod: own /proc and /run, the cluster's resolver, volumes; the rest is the machine's."""
    unshare(CLONE_NEWNS | CLONE_NEWUTS)
    _libc.sethostname(sandbox["hostname"].encode(), len(sandbox["hostname"].encode()))
    mount("none", "/", None, MS_REC | MS_SLAVE)
    # Bind sources lie under /run, which is about to be covered: hold them open.
    held = [(os.open(source, os.O_PATH | os.O_CLOEXEC), target) for source, target in sandbox["binds"]]
    release_namespace_mounts()
    mount("proc", "/proc", "proc", 0)
    mount("tmpfs", "/run", "tmpfs", 0, "mode=755,size=64m")
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)
    make_own_files_mountable([target for _, target in sandbox["binds"] if target in OWN_FILES])
    for fd, target in held:
        place = os.path.realpath(target)
        prepare_mount_point(place, os.path.isdir(f"/proc/self/fd/{fd}"))
        mount(f"/proc/self/fd/{fd}", place, None, MS_BIND | MS_REC)
        os.close(fd)


def release_namespace_mounts() -> None:
    """Let go of this copy of every named network namespace, or it would outlive its removal on the host."""
    with open("/proc/self/mounts") as table:
        points = [line.split()[1] for line in table]
    for point in reversed(points):
        if point == "/run/netns" or point.startswith("/run/netns/"):
            _libc.umount2(point.encode(), MNT_DETACH)


def make_own_files_mountable(targets: list[str]) -> None:
    """Where the machine lacks them: a layer over this pod's /etc in which they exist. The machine's stays as it is."""
    missing = [place for place in map(os.path.realpath, targets) if not os.path.exists(place)]
    missing = [place for place in missing if place.startswith("/etc/")]
    if not missing:
        return
    layer = "/run/etc"
    os.mkdir(layer)
    mount("tmpfs", layer, "tmpfs", 0, "mode=755,size=1m")
    os.mkdir(f"{layer}/upper")
    os.mkdir(f"{layer}/work")
    mount("overlay", "/etc", "overlay", 0, f"lowerdir=/etc,upperdir={layer}/upper,workdir={layer}/work")
    _libc.umount2(layer.encode(), MNT_DETACH)  # the overlay holds it
    os.rmdir(layer)
    for place in missing:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))


def prepare_mount_point(place: str, directory: bool) -> None:
    """A missing mount point is made only below the pod's own /run: everything else is the machine's."""
    if os.path.exists(place):
        return
    if not place.startswith("/run/"):
        raise OSError(f"{place} does not exist; a pod shares this machine's files: make it, or mount below /run")
    if directory:
        os.makedirs(place)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))


def become_pause(ready: int) -> NoReturn:
    """A pod's first process: holds the namespaces, and (SIGCHLD ignored) the kernel reaps orphans for it."""
    os.write(ready, b"+")
    os.close(ready)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.execv("/bin/sleep", ["sleep", "infinity"])


def main() -> None:
    """Run the Launch given as the only argument."""
    launch = json.loads(sys.argv[1])
    try:
        die_with_parent()
        enter(launch["namespaces"])
        if launch["sandbox"]:
            furnish(launch["sandbox"])
        os.chdir(launch["cwd"])
        become_user(launch["uid"], launch["gid"])
    except OSError as error:
        fail(str(error), 125)
    reset_signals()
    if launch["sandbox"]:
        become_pause(launch["sandbox"]["ready"])
    execute(launch["argv"], launch["env"])


if __name__ == "__main__":
    main()
