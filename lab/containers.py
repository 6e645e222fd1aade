"""The life of one container: started, probed, started again as its pod's restart policy says."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import probing
from lab.backoff import Backoff
from lab.logfiles import last_line
from lab.podspec import Container, Probe, port_number
from lab.process import Child, status_text

# A command that is started so often is broken; a bound keeps the machine usable and the reason visible.
RESTART_LIMIT_S = 30.0
# Without a probe, running is being ready; what cannot even start must not be called so in between.
SETTLED_AFTER_S = 0.2

# What lab.launch ends with when there is no program to run; it has said why in the log.
NOT_STARTED = (125, 126, 127)
_SAID_BY_LAUNCH = "culvert lab: "

Spawn = Callable[[Container, tuple[str, ...], Path | None], Child]


@dataclass(slots=True)
class ContainerState:
    """What a container shows in its pod's status."""

    name: str
    ready: bool = False
    restarts: int = 0
    pid: int | None = None
    exit_status: int | None = None
    message: str = ""
    done: bool = False
    probe_failure: str = field(default="")

    def status(self) -> dict[str, Any]:
        """As Pod.status.containerStatuses has it."""
        if self.pid is not None:
            state: dict[str, Any] = {"running": {}}
        elif self.done:
            code = self.exit_status if self.exit_status is not None else 0
            state = {"terminated": {"exitCode": code if code >= 0 else 128 - code, "reason": self.message}}
        else:
            state = {"waiting": {"reason": "CrashLoopBackOff" if self.restarts else "ContainerCreating",
                                 "message": self.message}}  # fmt: skip
        return {"name": self.name, "ready": self.ready, "restartCount": self.restarts, "state": state, "image": "",
                "imageID": "", "started": self.pid is not None}  # fmt: skip


def last_sentence(log: Path) -> str:
    """What the launcher wrote last into a container's log, if the last line is its own."""
    line = last_line(log)
    return line.removeprefix(_SAID_BY_LAUNCH) if line.startswith(_SAID_BY_LAUNCH) else ""


class ContainerRun:
    """Runs one container; owned by its pod's run."""

    def __init__(
        self,
        container: Container,
        spawn: Spawn,
        log: Path,
        node: Path,
        ip: str,
        changed: Callable[[], None],
    ) -> None:
        self.container = container
        self.state = ContainerState(container.name)
        self._spawn = spawn
        self._log = log
        self._node = node
        self._ip = ip
        self._changed = changed
        self._child: Child | None = None

    async def run(self, restart: str) -> None:
        """Run until the restart policy says that it is over; cancelling leaves the process to the pod."""
        if not self.container.argv:
            await self._idle()
        backoff = Backoff(time.monotonic, first_s=0.5, limit_s=RESTART_LIMIT_S)
        while True:
            backoff.started()
            status = await self._run_once()
            if restart == "Never" or (restart == "OnFailure" and status == 0):
                self.state.done = True
                self._changed()
                return
            self.state.restarts += 1
            self._changed()
            await asyncio.sleep(backoff.died())

    async def run_to_completion(self, restart: str) -> bool:
        """Run as an init container: again until it succeeds, unless the policy is Never."""
        if not self.container.argv:
            self.state.done = self.state.ready = True
            return True
        await self.run("Never" if restart == "Never" else "OnFailure")
        self.state.ready = self.state.exit_status == 0
        return self.state.ready

    def signal(self, number: int) -> None:
        """Signal its main process."""
        if self._child is not None:
            self._child.signal(number)

    async def gone(self) -> None:
        """Wait until its main process has ended."""
        if self._child is not None:
            await self._child.wait()

    async def _idle(self) -> None:
        self.state.ready = True
        self.state.message = "idle: no command"
        self._changed()
        await asyncio.Event().wait()

    async def _run_once(self) -> int:
        try:
            self._child = self._spawn(self.container, self.container.argv, self._log)
        except OSError as error:
            self.state.message = f"cannot be started: {error}"
            self.state.exit_status = 125
            self._changed()
            return 125
        self.state.pid = self._child.pid
        self.state.message = ""
        self._changed()
        watch = asyncio.get_running_loop().create_task(self._watch(self._child), name=f"probes {self.container.name}")
        try:
            status = await self._child.wait()
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
        self.state.pid, self.state.ready, self.state.exit_status = None, False, status
        self.state.message = status_text(status)
        if status in NOT_STARTED and (sentence := last_sentence(self._log)):
            self.state.message += f" ({sentence})"
        return status

    async def _watch(self, child: Child) -> None:
        if self.container.startup is not None and not await self._until(self.container.startup, child):
            return
        async with asyncio.TaskGroup() as group:
            if self.container.liveness is not None:
                group.create_task(self._keep_alive(self.container.liveness, child))
            group.create_task(self._keep_ready(self.container.readiness))

    async def _until(self, probe: Probe, child: Child) -> bool:
        await asyncio.sleep(probe.initial_delay_s)
        for _ in range(probe.failures):
            if await self._fault(probe) is None:
                return True
            await asyncio.sleep(probe.period_s)
        child.signal(9)
        return False

    async def _keep_alive(self, probe: Probe, child: Child) -> None:
        async def judge(healthy: bool) -> None:
            if not healthy:
                child.signal(15)
                await asyncio.sleep(5)
                child.signal(9)

        await self._repeat(probe, judge)

    async def _keep_ready(self, probe: Probe | None) -> None:
        async def judge(healthy: bool) -> None:
            self._set_ready(healthy)

        if probe is None:
            await asyncio.sleep(SETTLED_AFTER_S)
            self._set_ready(True)
        else:
            await self._repeat(probe, judge)

    async def _repeat(self, probe: Probe, judge: Callable[[bool], Awaitable[None]]) -> None:
        await asyncio.sleep(probe.initial_delay_s)
        good = bad = 0
        while True:
            fault = await self._fault(probe)
            good, bad = (good + 1, 0) if fault is None else (0, bad + 1)
            self.state.probe_failure = fault or ""
            if good >= probe.successes:
                await judge(True)
            elif bad >= probe.failures:
                await judge(False)
            # A pod that has only just been started is asked more often: whoever waits for it waits less.
            await asyncio.sleep(probe.period_s if self.state.ready else min(probe.period_s, 0.25))

    def _set_ready(self, ready: bool) -> None:
        if self.state.ready != ready:
            self.state.ready = ready
            self._changed()

    async def _fault(self, probe: Probe) -> str | None:
        try:
            async with asyncio.timeout(probe.timeout_s):
                return await self._ask(probe)
        except TimeoutError:
            return f"no answer within {probe.timeout_s:g} s"

    async def _ask(self, probe: Probe) -> str | None:
        if probe.exec is not None:
            child = self._spawn(self.container, probe.exec, None)
            try:
                status = await child.wait()
            finally:
                child.signal(9)
            return None if status == 0 else f"{' '.join(probe.exec)}: {status_text(status)}"
        wanted = probe.tcp_port if probe.tcp_port is not None else probe.http_port
        port = port_number(wanted, self.container)
        if port is None:
            return f"the container has no port named {wanted!r}"
        if probe.tcp_port is not None:
            return await probing.tcp_fault(self._node, self._ip, port)
        return await probing.http_fault(self._node, self._ip, port, probe)
