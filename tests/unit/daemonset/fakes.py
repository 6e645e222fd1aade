"""A world for workers that writes down, in order, what they do to it."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from daemonset.agent import OpenNetns
from daemonset.enrolment import CaptureRefused, KernelFault, Pace, World
from daemonset.pods import Pod, Refusal
from daemonset.ztunnels import Wanted
from mesh.addresses import IPAddress

PACE = Pace(settle_s=2.0, retry_first_s=1.0, retry_max_s=8.0)


def pod(name: str = "web", uid: str = "", addresses: Sequence[str] = ("10.0.0.5",), **labels: str) -> Pod:
    return Pod(
        uid=uid or f"uid-{name}",
        namespace="shop",
        name=name,
        service_account="web",
        node="n1",
        addresses=tuple(ip_address(address) for address in addresses),
        netns=f"/run/netns/{name}",
        labels={key.replace("mesh", "culvert.io/mesh"): value for key, value in labels.items()},
    )


async def settle() -> None:
    """Let everything run that can run without anybody's answer."""
    for _ in range(20):
        await asyncio.sleep(0)


class FakeClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.asked: list[float] = []
        self._timers: list[tuple[float, asyncio.Future[None]]] = []

    def after(self, seconds: float) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.append(seconds)
        self._timers.append((self.time + seconds, future))
        return future

    def now(self) -> float:
        return self.time

    async def advance(self, seconds: float) -> None:
        self.time += seconds
        for due, future in self._timers:
            if due <= self.time and not future.done():
                future.set_result(None)
        await settle()


class FakeWorld:
    """Kernel, ztunnels and controller; `log` has what was done to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.clock = FakeClock()
        self.kernel_fault: str = ""
        self.refusal: Refusal | None = None
        self.unguarded = ""
        self.stands = False
        self.guards = 0
        self.ports: dict[int, tuple[int, ...]] = {}
        self.has_ztunnel = True
        self.listen_error = ""
        self.controller_answers = True
        self.older_connections: int | OSError = 3
        self.wanted: dict[str, Wanted] = {}
        self.reported: set[str] = set()
        self.asked: dict[str, asyncio.Future[str]] = {}
        self.unanswered: list[asyncio.Future[None]] = []
        self.changes = 0

    @property
    def world(self) -> World:
        return World(self, self, self, self.clock, self.census, self.changed)

    def changed(self) -> None:
        self.changes += 1

    def census(self, netns: int) -> int:
        if isinstance(self.older_connections, OSError):
            raise self.older_connections
        return self.older_connections

    def _kernel(self, line: str) -> None:
        if self.kernel_fault:
            raise KernelFault(self.kernel_fault)
        self.log.append(line)

    def admit(self, cookie: int) -> None:
        if self.refusal is not None:
            raise CaptureRefused(self.refusal)

    def capture(self, cookie: int, netns: int, addresses: Sequence[IPAddress]) -> None:
        self._kernel(f"capture {cookie} {' '.join(map(str, addresses))}")

    def guard(self, cookie: int, netns: int) -> str:
        self.guards += 1
        self.stands = not self.unguarded
        return self.unguarded

    def guarded(self, pods: Mapping[int, int]) -> Collection[int]:
        if self.kernel_fault:
            raise KernelFault(self.kernel_fault)
        return pods if self.stands else ()

    def refused_ports(self) -> Mapping[int, Sequence[int]]:
        if self.kernel_fault:
            raise KernelFault(self.kernel_fault)
        return self.ports

    def uncapture(self, cookie: int) -> None:
        self._kernel(f"uncapture {cookie}")

    def release(self, cookie: int) -> None:
        self._kernel(f"release {cookie}")

    def want(self, wanted: Wanted) -> None:
        self.wanted[wanted.add.uid] = wanted

    def listen(self, wanted: Wanted) -> asyncio.Future[str]:
        self.log.append(f"listen {wanted.add.name}")
        self.want(wanted)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.asked[wanted.add.uid] = future
        if self.has_ztunnel:
            future.set_result(self.listen_error)
        return future

    def forget(self, uid: str) -> asyncio.Future[None]:
        self.log.append(f"forget {uid}")
        self.wanted.pop(uid, None)
        return self._answer(self.has_ztunnel)

    def put(self, pod: Pod) -> None:
        self.log.append(f"report +{pod.name}")
        self.reported.add(pod.uid)

    def remove(self, uid: str) -> bool:
        if uid in self.reported:
            self.log.append(f"report -{uid}")
        self.reported.discard(uid)
        return True

    def acknowledged(self) -> asyncio.Future[None]:
        self.log.append("acknowledged?")
        return self._answer(self.controller_answers)

    def _answer(self, at_once: bool) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if at_once:
            future.set_result(None)
        else:
            self.unanswered.append(future)
        return future

    async def answer(self) -> None:
        """Answer everything that waits for controller or ztunnel."""
        for future in self.unanswered:
            if not future.done():
                future.set_result(None)
        for asked in self.asked.values():
            if not asked.done():
                asked.set_result(self.listen_error)
        await settle()

    def take_log(self) -> list[str]:
        taken, self.log = self.log, []
        return taken


class FakeNamespaces:
    """Namespaces by path: a cookie each, on descriptors of /dev/null."""

    def __init__(self, cookies: dict[str, int]) -> None:
        self.cookies = cookies
        self._opened: dict[int, int] = {}

    def open(self, path: str) -> OpenNetns:
        if path not in self.cookies:
            raise FileNotFoundError(f"{path} is not there")
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._opened[fd] = self.cookies[path]
        return OpenNetns(fd, self.cookies[path])

    def is_same(self, fd: int, path: str) -> bool:
        if path not in self.cookies:
            raise FileNotFoundError(path)
        return self._opened[fd] == self.cookies[path]


def null_fd() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def open_descriptors() -> int:
    """How many namespaces' descriptors are open. Others are not counted: gRPC closes those of earlier tests late."""
    links = Path("/proc/self/fd").iterdir()
    return sum(path.readlink() == Path("/dev/null") for path in links if path.is_symlink())


@contextlib.contextmanager
def held_lock(runtime: Path) -> Iterator[None]:
    """The lock of a running agent, this process."""
    with (runtime / "agent.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
