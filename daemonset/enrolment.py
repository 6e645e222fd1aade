"""One pod's way into the mesh and out of it: a worker that takes the table's steps in order.

The worker owns the descriptor of the pod's network namespace and the pod's state; others set its goal and read its
report. It runs one step at a time. A step that waits (for ztunnel, the controller or a pause) is cut when the goal
changes; a step that writes to the kernel is short and runs to its end.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemonset.lifecycle import TABLE, Goal, Outcome, Row, State, Step, after
from daemonset.pods import Pod, Refusal, RefusalKind, port_reserved
from daemonset.ztunnels import Wanted
from mesh import zds
from mesh.addresses import IPAddress

log = logging.getLogger(__name__)

# A pod that cannot be enrolled as it is (its own listener on a mesh port) is asked again at this pace.
REFUSED_RETRY_S = 10.0


class KernelFault(Exception):
    """A map or link could not be written; the step is tried again."""


class CaptureRefused(Exception):
    """The pod must not be captured, and why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Kernel(Protocol):
    """The node's maps and links, as a worker needs them. Every call may be repeated; all raise KernelFault."""

    def admit(self, cookie: int) -> None:
        """Make sure that nobody else captures the namespace; raises CaptureRefused."""

    def capture(self, cookie: int, netns: int, addresses: Sequence[IPAddress]) -> None:
        """Steer what arrives, then capture what the pod dials."""

    def guard(self, cookie: int, netns: int) -> str:
        """Let only ztunnel open connections out of a captured pod; why that does not hold, empty: it does."""

    def guarded(self, pods: Mapping[int, int]) -> Collection[int]:
        """Of pods by cookie and descriptor: those about whose guard nothing is to be done."""

    def refused_ports(self) -> Mapping[int, Sequence[int]]:
        """Ports of the mesh that pods' processes wanted to bind since they were captured, by cookie."""

    def uncapture(self, cookie: int) -> None:
        """New connections pass both ways, except those to the HBONE port."""

    def release(self, cookie: int) -> None:
        """Remove everything of a pod."""


class Listening(Protocol):
    """The ztunnels."""

    def want(self, wanted: Wanted) -> None:
        """Serve a pod from now on."""

    def listen(self, wanted: Wanted) -> asyncio.Future[str]:
        """Serve a pod and hear how it went."""

    def forget(self, uid: str) -> asyncio.Future[None]:
        """No longer serve a pod."""


class Announcing(Protocol):
    """What the controller is told."""

    def put(self, pod: Pod) -> None:
        """The pod is captured."""

    def remove(self, uid: str) -> bool:
        """It is not any more; False when that was never said."""

    def acknowledged(self) -> asyncio.Future[None]:
        """Done when the controller has acted on everything that was said until now."""


class Clock(Protocol):
    """Time, so that tests own it."""

    def after(self, seconds: float) -> asyncio.Future[None]:
        """Done after so many seconds."""

    def now(self) -> float:
        """Seconds since the epoch."""


class Census(Protocol):
    """Counts connections that a pod had before it was captured."""

    def __call__(self, netns: int) -> int:
        """Established connections of a namespace that leave it; raises OSError."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything a worker acts on."""

    kernel: Kernel
    ztunnels: Listening
    reports: Announcing
    clock: Clock
    census: Census
    changed: Callable[[], None]  # somebody's state or reason is another one now


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a worker waits; seconds."""

    settle_s: float
    retry_first_s: float
    retry_max_s: float


class Worker:
    """Enrols one pod, identified by its namespace's cookie, and lets it go."""

    def __init__(self, pod: Pod, netns: int, cookie: int, world: World, pace: Pace) -> None:
        self.pod = pod
        self.cookie = cookie
        self.netns = netns
        self.state = State.WAITING
        self.goal = Goal.ENROL
        self.reason = ""
        self.refused: RefusalKind | None = None  # in state REFUSED: why, in a word
        self.captured = False  # the kernel captures it, whatever its state
        self.pre_enrolment: int | None = None  # connections that are older than the capture; None: not known
        self.unguarded = ""  # of a captured pod: why something may leave it past ztunnel
        self.conflict: Refusal | None = None  # a process of the captured pod wants a port that is the mesh's
        self.since = world.clock.now()
        self._world = world
        self._pace = pace
        self._failures = 0
        self._announced = False
        self._change: asyncio.Future[None] | None = None
        self._changed = False
        world.ztunnels.want(self._wanted())

    def adopt(self, *, captured: bool) -> None:
        """The kernel holds this pod already, from an agent before us; call before `run`."""
        self.captured = captured
        self._announced = True  # perhaps: who was before us may have said so
        if captured:
            self._announce()

    def aim(self, goal: Goal, pod: Pod | None = None) -> None:
        """Set where the pod shall get to, and what is known of it now."""
        before, self.pod = self.pod, pod or self.pod
        if goal is self.goal and before.addresses == self.pod.addresses:
            return
        self.goal = goal
        self._touch()

    def guard(self) -> None:
        """Put the guard on every link of the captured pod that has none."""
        before, self.unguarded = self.unguarded, self._world.kernel.guard(self.cookie, self.netns)
        if self.unguarded != before:
            log.info("pod %s: guard: %s", self.pod.full_name, self.unguarded or "stands")
            self._world.changed()

    def was_refused(self, ports: Sequence[int]) -> None:
        """Processes of the pod were refused these ports of the mesh; none: not since it was captured last."""
        before, self.conflict = self.conflict, port_reserved(ports) if ports else None
        if self.conflict != before:
            if self.conflict is not None:
                log.warning("pod %s: %s", self.pod.full_name, self.conflict)
            self._world.changed()

    def lost(self, reason: str) -> None:
        """No ztunnel listens for this pod any more; it stays captured and its connections are refused."""
        if self.state is State.CAPTURED:
            self.reason = reason
            self._world.changed()
            self._touch()

    async def run(self) -> None:
        """Take steps until nothing of the pod is left; owns the namespace's descriptor until then."""
        try:
            while self.state is not State.REMOVED:
                await self._advance(TABLE[self.state, self.goal])
        finally:
            os.close(self.netns)

    async def _advance(self, row: Row) -> None:
        self._changed = False
        goal = self.goal
        try:
            outcome = await self._take(row.step)
        except (KernelFault, OSError) as error:
            outcome, self.reason = Outcome.FAILED, str(error)
        except CaptureRefused as error:
            outcome = self._refuse(error.refusal)
        if outcome is None:
            return  # cut: the table is asked again
        self._enter(after(row, outcome))
        if outcome is not Outcome.DONE and self.goal is goal:
            await self._pause(outcome)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            level = logging.WARNING if state in (State.REFUSED, State.FAILED) else logging.INFO
            why = f": {self.reason}" if level == logging.WARNING else ""
            log.log(level, "pod %s: %s -> %s%s", self.pod.full_name, self.state, state, why)
            self.since = self._world.clock.now()
        if state in (State.CAPTURED, State.DRAINING, State.DRAINED):
            self.reason = ""
            self._failures = 0
        self.state = state
        self.refused = self.refused if state is State.REFUSED else None
        self._world.changed()

    async def _take(self, step: Step) -> Outcome | None:
        """Take one step; None when a change of goal has cut it."""
        match step:
            case Step.LISTEN:
                return await self._listen()
            case Step.CAPTURE:
                return self._capture()
            case Step.REST:
                await self._until_changed()
                return Outcome.DONE if self.goal is Goal.ENROL else None
            case Step.UNCAPTURE:
                self._world.kernel.uncapture(self.cookie)
                self.captured = False
                self._withdraw()
                return Outcome.DONE
            case Step.CONVERGE:
                return await self._converge()
            case Step.RELEASE:
                return await self._release()

    async def _listen(self) -> Outcome | None:
        self._world.kernel.admit(self.cookie)  # first: another set would keep ztunnel from binding its ports
        self.reason = self.reason or "waiting for ztunnel"
        answer = self._world.ztunnels.listen(self._wanted())
        if not await self._until(answer):
            return None
        error = answer.result()
        if not error:
            return Outcome.DONE
        self.reason = f"ztunnel: {error}"
        if zds.PORT_IN_USE.lower() not in error.lower():
            return Outcome.FAILED
        return self._refuse(Refusal(RefusalKind.PORT_IN_USE, f"the pod listens on a port of the mesh ({error})"))

    def _refuse(self, refusal: Refusal) -> Outcome:
        self.refused, self.reason = refusal.kind, refusal.text
        return Outcome.REFUSED

    def _capture(self) -> Outcome:
        if not self.captured:
            self.pre_enrolment = self._count_older()
        self._world.kernel.capture(self.cookie, self.netns, self.pod.addresses)
        self.captured = True
        self.guard()  # after the capture: an opening of the pod that is not captured yet shall not be dropped
        self._announce()
        return Outcome.DONE

    def _count_older(self) -> int | None:
        try:
            return self._world.census(self.netns)
        except OSError as error:  # a figure for people: no reason to leave the pod outside
            log.warning("pod %s: cannot count connections from before: %s", self.pod.full_name, error)
            return None

    async def _converge(self) -> Outcome | None:
        if not self._announced:
            return Outcome.DONE
        self.reason = "waiting for the controller to withdraw the pod"
        if not await self._until(self._world.reports.acknowledged()):
            return None
        self.reason = "waiting for peers to follow"
        if not await self._until(self._world.clock.after(self._pace.settle_s)):
            return None
        self._announced = False
        return Outcome.DONE

    async def _release(self) -> Outcome | None:
        forgotten = self._world.ztunnels.forget(self.pod.uid)
        self._withdraw()
        if self.goal is Goal.UNENROL and not await self._until(forgotten):
            return None
        self._world.kernel.release(self.cookie)
        self.captured = False
        return Outcome.DONE

    def _wanted(self) -> Wanted:
        pod = self.pod
        return Wanted(zds.Add(pod.uid, pod.namespace, pod.name, pod.service_account), self.netns)

    def _announce(self) -> None:
        self._world.reports.put(self.pod)
        self._announced = True

    def _withdraw(self) -> None:
        self._world.reports.remove(self.pod.uid)

    async def _pause(self, outcome: Outcome) -> None:
        """Wait before the next try, unless the goal changes."""
        pace = self._pace
        delay = min(pace.retry_first_s * 2 ** min(self._failures, 16), pace.retry_max_s)
        self._failures += 1
        await self._until(self._world.clock.after(REFUSED_RETRY_S if outcome is Outcome.REFUSED else delay))

    async def _until_changed(self) -> None:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._until(never)

    async def _until(self, future: asyncio.Future[str] | asyncio.Future[None]) -> bool:
        """Wait for a future; False when the goal changed first, and then nobody waits for it any more."""
        if self._changed:
            future.cancel()
            return False
        self._change = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait({future, self._change}, return_when=asyncio.FIRST_COMPLETED)
            return future.done() and not future.cancelled()
        finally:
            self._change.cancel()
            self._change = None
            future.cancel()

    def _touch(self) -> None:
        self._changed = True
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
