"""A controller as a process, its ztunnels as another, a world on an API server between them and a churn."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster.alone import ApiAlone
from tests.cluster.kube.api_server import free_ports
from tests.cluster.objects import define
from tests.cluster.scale.world import World
from tests.cluster.scale.writer import Writer

_START_S = 120.0


class ControllerProcess:
    """A controller whose ports and state outlive its process."""

    def __init__(self, server: ApiAlone, folder: Path, profile: Path | None = None) -> None:
        self.port, self._metrics_port, self._debug_port = free_ports(3)
        self._state = folder / "state"
        self.log = folder / "controller.log"
        self.credential = folder / "credential"
        self._server = server
        self._profile = profile
        self._starts = 0
        self._popen: subprocess.Popen[bytes] | None = None

    async def start(self) -> float:
        """Start it; the seconds until it was ready."""
        self._starts += 1
        profile = ("-m", "cProfile", "-o", f"{self._profile}.{self._starts}") if self._profile else ()
        argv = [sys.executable, "-X", "faulthandler", *profile]
        argv += ["-m", "controller", "serve", f"--state={self._state}", "--source=kubernetes"]
        argv += [f"--kubeconfig={self._server.kubeconfig}", f"--listen=127.0.0.1:{self.port}"]
        argv += [f"--metrics-listen=127.0.0.1:{self._metrics_port}", f"--debug-listen=127.0.0.1:{self._debug_port}"]
        started = time.monotonic()
        with self.log.open("ab") as log:
            self._popen = await asyncio.to_thread(subprocess.Popen, argv, stdout=log, stderr=log)
        await self.until(self._is_ready, "the controller is ready")
        return time.monotonic() - started

    async def stop(self) -> None:
        """End it as Kubernetes does."""
        if self._popen is not None:
            self._popen.terminate()
            try:
                await asyncio.to_thread(self._popen.wait, 20)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                await asyncio.to_thread(self._popen.wait)
            self._popen = None

    async def make_credential(self) -> None:
        """What ztunnels show."""
        argv = [sys.executable, "-m", "controller", "credential", f"--state={self._state}", "--node=node-0"]
        await asyncio.to_thread(subprocess.run, [*argv, f"--out={self.credential}"], check=True)

    async def read_again(self) -> bool:
        """Let it list everything anew; True once all of it has reached the index."""
        url = f"http://127.0.0.1:{self._debug_port}/debug/announced?wait_s=4"
        return bool(json.loads(await asyncio.to_thread(_get, url))["source_read"])

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels; `name` without the prefix."""
        text = await asyncio.to_thread(_get, f"http://127.0.0.1:{self._metrics_port}/metrics")
        lines = [line for line in text.decode().splitlines() if line.startswith(f"culvert_controller_{name}")]
        assert lines, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def memory_kb(self) -> tuple[int, int]:
        """Resident now, and the most so far."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Vm")}
        return sizes["VmRSS"], sizes["VmHWM"]

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._popen is not None
        return self._popen.pid

    def check_alive(self, doing: str) -> None:
        """Fail with what it said last, if it has ended."""
        code = self._popen.poll() if self._popen else None
        assert code is None, f"the controller ended with {code} while: {doing}\n{self._log_end()}"

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something of it; what it logged is in the failure."""
        deadline = time.monotonic() + _START_S
        while not await asyncio.to_thread(condition):
            self.check_alive(what)
            assert time.monotonic() < deadline, f"not so: {what}\n{self._log_end()}"
            await asyncio.sleep(0.05)

    def _log_end(self) -> str:
        lines = [line for line in self.log.read_text().splitlines() if "connected" not in line]
        return "\n".join(lines[-60:])

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(_get(f"http://127.0.0.1:{self._metrics_port}/healthz/ready"))
        return False


class Ztunnels:
    """The process of `tests.cluster.scale.ztunnels`; an asynchronous context manager."""

    def __init__(self, controller: ControllerProcess, count: int) -> None:
        self.count = count
        self._controller = controller
        self._argv = [sys.executable, "-m", "tests.cluster.scale.ztunnels", f"--address=127.0.0.1:{controller.port}"]
        self._argv += [f"--credential={controller.credential}", f"--count={count}"]

    async def __aenter__(self) -> "Ztunnels":
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._argv, stdin=pipe, stdout=pipe, limit=1 << 28)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    @property
    def pid(self) -> int:
        """The process of all of them."""
        return self._process.pid

    async def ask(self, question: str) -> Any:
        """The answer to a question."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{question}\n".encode())
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), 120))

    async def at_rest(self, quiet_s: float = 1.5, deadline_s: float = 180.0) -> dict[str, Any]:
        """What all hold, once all are synced and nothing has come for a while."""
        deadline = time.monotonic() + deadline_s
        before: dict[str, Any] = {}
        while True:
            now: dict[str, Any] = await self.ask("held")
            if now["synced"] == self.count and now == before:
                return now
            self._controller.check_alive("ztunnels come to rest")
            assert time.monotonic() < deadline, f"no rest: {now}"
            before = now
            await asyncio.sleep(quiet_s)


async def populate(server: ApiAlone, world: World, writer: Writer) -> float:
    """Make a world; the seconds that it took."""
    await define(server.api())
    started = time.monotonic()
    await writer.make(world.namespaces())
    await writer.make(world.others())
    return time.monotonic() - started


@contextlib.asynccontextmanager
async def started(server: ApiAlone, folder: Path, profile: Path | None = None) -> AsyncIterator[ControllerProcess]:
    """A controller that serves, with a credential for ztunnels."""
    controller = ControllerProcess(server, folder, profile)
    try:
        await controller.start()
        await controller.make_credential()
        yield controller
    finally:
        await controller.stop()


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=15) as answer:
        return bytes(answer.read())
