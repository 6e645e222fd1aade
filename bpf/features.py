"""What the programs need of the machine, each tried on the running kernel and told in one sentence.

Used by the loader before it touches anything, and by `culvert check`. Versions are never compared.
"""

import errno
import importlib.util
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bpf import cgroup, kernel
from bpf.paths import BPFFS

SOCK_ADDR, SOCK_OPS, SK_LOOKUP = 18, 13, 30
SCHED_CLS = 3
CONNECT4, BIND4, GETPEERNAME4, GETSOCKNAME4, LOOKUP, TCX_INGRESS = 10, 8, 29, 31, 36, 46
NO_SUCH_LINK = 0x7FFFFFFF  # the index of no network link

# Helper numbers of enum bpf_func_id.
STORAGE_GET, NETNS_COOKIE, SK_ASSIGN, SET_RETVAL, MPTCP_SOCK, TCP_CB_FLAGS = 107, 122, 124, 187, 196, 59

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
INGRESS_IFINDEX = 64  # offset in struct bpf_sk_lookup


@dataclass(frozen=True, slots=True)
class Check:
    """One need. `sentence` says what was found, and what is lost without it."""

    name: str
    is_met: bool
    sentence: str
    is_required: bool = True


def _instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | destination, offset, immediate)


_RETURN_1 = _instruction(0xB7, immediate=1) + _instruction(0x95)


def _loads(kind: int, attach_type: int, body: bytes = b"") -> str | None:
    """Why a program is refused; None when it loads."""
    try:
        fd, _ = kernel.load_program(kind, attach_type, body + _RETURN_1)
    except kernel.Rejected as error:
        return error.log or "refused"
    except OSError as error:
        return str(error)
    os.close(fd)
    return None


def _has_helper(kind: int, attach_type: int, helper: int) -> bool:
    """The verifier refuses a helper it does not offer before it looks at the arguments, which are nonsense here."""
    reason = _loads(kind, attach_type, _instruction(0x85, immediate=helper))
    if reason is None:
        return True
    unknown = ("unknown func", "invalid func", "cannot use helper")
    return not any(word in reason for word in unknown) and "Operation not permitted" not in reason


def has_mptcp() -> bool:
    """Can a program get from a subflow to its MPTCP socket?"""
    return _has_helper(SOCK_ADDR, CONNECT4, MPTCP_SOCK) and _has_helper(SOCK_OPS, 0, MPTCP_SOCK)


def has_guard() -> bool:
    """Can a program be put on a network link by a link of its own (tcx)?

    A link that does not exist must be the reason of the refusal.
    """
    try:
        fd, _ = kernel.load_program(SCHED_CLS, 0, _RETURN_1)
    except (kernel.Rejected, OSError):
        return False
    try:
        os.close(kernel.link_create(fd, NO_SUCH_LINK, TCX_INGRESS))
    except OSError as error:
        return error.errno == errno.ENODEV
    finally:
        os.close(fd)
    return False


def _held_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def capabilities() -> Check:
    """Loading needs four of them; CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON as well."""
    held = _held_capabilities()
    missing = [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]
    if not held >> CAPABILITIES["CAP_SYS_ADMIN"] & 1 or "CAP_NET_ADMIN" in missing:
        return Check("capabilities", False, f"this process lacks {', '.join(missing)}: run it as root")
    return Check("capabilities", True, "this process may load programs")


def is_bpffs(directory: Path) -> bool:
    """By its device: the mount table goes on listing what another mount has covered."""
    try:
        device = directory.stat().st_dev
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in cgroup.MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted and after.split()[0] == "bpf":
            return True
    return False


def bpffs() -> Check:
    """Pins live on bpffs."""
    if not is_bpffs(BPFFS):
        return Check("bpffs", False, f"no bpffs at {BPFFS}: mount -t bpf bpf {BPFFS}")
    return Check("bpffs", True, f"bpffs is mounted at {BPFFS}")


def cgroup_root() -> Check:
    """Programs attach at the true cgroup2 root."""
    try:
        return Check("cgroup2", True, f"the cgroup2 root is {cgroup.find_root()}")
    except (cgroup.NoCgroupRoot, OSError) as error:
        return Check("cgroup2", False, str(error))


def compiler() -> Check:
    """Looks for bcc without importing it."""
    if importlib.util.find_spec("bcc") is None:
        return Check("bcc", False, "the Python module bcc is missing: install python3-bpfcc")
    return Check("bcc", True, "bcc is installed")


def _links_work() -> bool:
    """A link to a target that is none must fail for its target, not because links are unknown."""
    try:
        fd, _ = kernel.load_program(SOCK_ADDR, CONNECT4, _RETURN_1)
    except (kernel.Rejected, OSError):
        return False
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(kernel.link_create(fd, null, CONNECT4))
    except OSError as error:
        return error.errno == 9  # EBADF: "not a cgroup"
    finally:
        os.close(null)
        os.close(fd)
    return False


_READ_IFINDEX = _instruction(0x61, destination=0, source=1, offset=INGRESS_IFINDEX)

# name, probe, what is needed and since when the kernel has it (for the reader; the probe decides)
KERNEL_NEEDS: tuple[tuple[str, Callable[[], bool], str], ...] = (
    ("connect", lambda: _loads(SOCK_ADDR, CONNECT4) is None, "cgroup connect programs (Linux 4.17)"),
    ("bind", lambda: _loads(SOCK_ADDR, BIND4) is None, "cgroup bind programs (Linux 4.17)"),
    (
        "names",
        lambda: _loads(SOCK_ADDR, GETPEERNAME4) is None and _loads(SOCK_ADDR, GETSOCKNAME4) is None,
        "cgroup getpeername and getsockname programs (Linux 5.8)",
    ),
    ("sock_ops", lambda: _has_helper(SOCK_OPS, 0, TCP_CB_FLAGS), "sock_ops programs (Linux 4.16)"),
    ("sk_lookup", lambda: _has_helper(SK_LOOKUP, LOOKUP, SK_ASSIGN), "sk_lookup programs (Linux 5.9)"),
    (
        "ingress_ifindex",
        lambda: _loads(SK_LOOKUP, LOOKUP, _READ_IFINDEX) is None,
        "the arriving interface in sk_lookup programs (Linux 5.17)",
    ),
    (
        "netns_cookie",
        lambda: _has_helper(SOCK_ADDR, CONNECT4, NETNS_COOKIE) and _has_helper(SOCK_OPS, 0, NETNS_COOKIE),
        "netns cookies in connect and sock_ops programs (Linux 5.15)",
    ),
    (
        "sk_storage",
        lambda: _has_helper(SOCK_ADDR, CONNECT4, STORAGE_GET) and _has_helper(SOCK_OPS, 0, STORAGE_GET),
        "socket storage in connect and sock_ops programs (Linux 5.8)",
    ),
    ("set_retval", lambda: _has_helper(SOCK_ADDR, CONNECT4, SET_RETVAL), "an errno from programs (Linux 5.18)"),
    ("links", _links_work, "links to cgroups (Linux 5.7)"),
)


def kernel_checks() -> list[Check]:
    """Each feature of the kernel that the programs cannot do without, and those that they can."""
    checks = []
    for name, probe, need in KERNEL_NEEDS:
        is_met = probe()
        checks.append(Check(name, is_met, f"this kernel {'has' if is_met else 'lacks'} {need}"))
    is_met = has_mptcp()
    loss = "has" if is_met else "lacks (getpeername of MPTCP applications shows ztunnel's address without it)"
    checks.append(Check("mptcp", is_met, f"this kernel {loss} the way from a subflow to its MPTCP socket", False))
    is_met = has_guard()
    loss = "has" if is_met else "lacks (what evades the capture is not dropped at the source without it)"
    checks.append(Check("guard", is_met, f"this kernel {loss} programs on network links (tcx, Linux 6.6)", False))
    return checks


def required_for_loading() -> list[Check]:
    """The machine first; the kernel only when programs may be tried at all."""
    machine = [capabilities(), bpffs(), cgroup_root(), compiler()]
    if not machine[0].is_met:
        return machine
    return machine + [check for check in kernel_checks() if check.is_required]


def all_checks() -> list[Check]:
    """For `culvert check`."""
    machine = [capabilities(), bpffs(), cgroup_root(), compiler()]
    return machine + (kernel_checks() if machine[0].is_met else [])
