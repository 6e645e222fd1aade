"""A running ztunnel, put together: who is made from whom, in which order it starts, and how it ends.

Start: the node's maps (the agent loads them), the engine, the controller's stream and the agent's pods, all at once;
connections wait until the first snapshot and their certificate are there. End: stop listening, tell peers, let
what is open finish until the deadline, cut.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import sys
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry

from bpf.plane import Plane
from mesh import probe_file, xds
from mesh.aio import Background
from mesh.channel import Credentials
from mesh.http import HttpServer
from mesh.identity import Identity
from ztunnel.admin import dump, server
from ztunnel.admin.explain import explain
from ztunnel.compile import Compiler, policy_check
from ztunnel.config import Config
from ztunnel.connections import EventPump, Names, Reporter
from ztunnel.control.ads import AdsClient, NodeIdentity
from ztunnel.control.link import ControllerLink
from ztunnel.data_path import DataPath, load_border
from ztunnel.endpoints import Here
from ztunnel.events import ConnectionEvent
from ztunnel.identity.ca import GrpcCa
from ztunnel.identity.manager import IdentityManager
from ztunnel.identity.roots import RootsUpdates
from ztunnel.inpod.agent_link import AgentLink
from ztunnel.inpod.earlier import EarlierConnections
from ztunnel.inpod.pods import Pod, PodInfo, PodTable
from ztunnel.inpod.takeover import Takeover
from ztunnel.kernel import KernelMaps, open_plane
from ztunnel.state import Store
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.flows import FlowMetrics
from ztunnel.telemetry.labels import Edge
from ztunnel.telemetry.line_writer import LineWriter
from ztunnel.telemetry.metrics import ConnectionMetrics
from ztunnel.telemetry.process import EngineStats, ProcessMetrics
from ztunnel.telemetry.recent import RecentFlows
from ztunnel.updates import Updates

log = logging.getLogger(__name__)

# After the drain's own deadline the engine needs a moment to say that it is over.
DRAIN_GRACE_S = 1.0
# How often a port is tried that the ztunnel before this one still has.
PORT_RETRY_S = 0.2
# How long the last lines of the access log may take to be written.
LOG_GRACE_S = 2.0


class NotReadyInTime(Exception):
    """`--start-timeout-s` is over; the message says what is missing."""


class Ztunnel:
    """All parts of one process; made and used on the event loop."""

    def __init__(self, config: Config, plane: Plane, background: Background) -> None:
        place, control = config.place, config.control
        self.config = config
        self.drained = asyncio.Event()
        border = load_border()
        self.kernel = KernelMaps(plane)
        here = Here(place.node, place.network, place.cluster_id)
        self.store = Store(here, self.kernel.numbers(), check=policy_check(border))
        self.names = Names(self.store)
        self.engine = DataPath(border, config.data_path, self.kernel.notes_fd, self.kernel.flows_fd)
        credentials = Credentials(place.runtime / "credentials", control.token, place.cluster_id, control.roots)
        self.link = ControllerLink(control.controller, control.controller_name, credentials)
        ca = GrpcCa(self.link.channel, self.link.metadata, control.certificate_ttl_s)
        self.identities = IdentityManager(ca, self.engine, background)
        self.pods = PodTable(
            self.kernel, self.engine, self.identities, self._identity_of, self._workload_uid_of, self._pod_added
        )
        self.agent = AgentLink(place.runtime / "ztunnel.sock", self.pods)
        self.takeover = Takeover(
            place.runtime / "handover.sock",
            self.agent,
            self.pods,
            self.identities,
            lambda namespace, account: Identity(place.trust_domain, namespace, account),
            lambda is_retired: self.updates.retire(is_retired),  # noqa: PLW0108 - made further down
        )
        self.earlier = EarlierConnections(self.store, plane, self.pods)
        self.updates = Updates(
            self.store, Compiler(self.store, border), self.engine, self.kernel, self.pods, self.earlier.judge_soon
        )
        extra = (
            {xds.ROOTS_TYPE: RootsUpdates(self.identities.trust).apply} if control.control_plane == "culvert" else {}
        )
        self.ads = AdsClient(self._node(), self.link, self.updates.apply, extra)
        self.metrics = ConnectionMetrics(self._live)
        self.lines = LineWriter(sys.stdout.fileno())
        access_log = AccessLog(self.lines, config.logs.log_format == "json", self.names.policy)
        self.recent = RecentFlows(self.names.policy)
        self.reporter = Reporter(
            self.engine,
            self.names,
            self.metrics,
            access_log if config.logs.access_log else None,
            self.pods,
            self.identities,
            self.drained.set,
            self.recent,
        )

    def _live(self) -> Iterable[tuple[ConnectionEvent, Edge]]:
        return self.reporter.live()

    def _pod_added(self, pod: Pod) -> None:
        self.updates.refresh_fallback(pod)
        self.earlier.judge_soon()

    def _identity_of(self, info: PodInfo) -> Identity:
        return Identity(self.config.place.trust_domain, info.namespace, info.service_account)

    def _workload_uid_of(self, info: PodInfo) -> str:
        return f"{self.config.place.cluster_id}//Pod/{info.namespace}/{info.name}"

    def _node(self) -> NodeIdentity:
        place = self.config.place
        return NodeIdentity(place.node, place.pod_name, place.pod_namespace, place.instance_ip, place.cluster_id)

    def _stats(self) -> EngineStats:
        stats = self.engine.stats()
        return replace(stats, events_dropped=stats.events_dropped + self.lines.lost)

    def registry(self) -> CollectorRegistry:
        """Every metric of this process."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self.metrics)
        registry.register(
            FlowMetrics(
                self.kernel.edges,
                self.engine.flows,
                self.names.end,
                self.kernel.remove_edges,
                lambda: self.updates.may_name,
            )
        )
        parts = (self.ads, self.identities, self.pods, self.agent, self.store)
        registry.register(ProcessMetrics(dump.VERSION, self._stats, *parts))
        return registry

    def servers(self) -> Iterator[HttpServer]:
        """The ports on which it is asked."""
        ports = self.config.ports
        yield server.admin_server(
            ports.admin_host,
            ports.admin_port,
            self._dump,
            lambda source, destination: explain(self.store, source, destination),
            self._flows,
            self.config.logs.log_level,
        )
        yield server.metrics_server(ports.metrics_port, self.registry(), self.reporter.take_all)
        yield server.readiness_server(ports.ready_port, self.pending)

    def _flows(self) -> list[dict[str, Any]]:
        self.reporter.take_all()
        return self.recent.view(self.reporter.live())

    def _dump(self) -> dict[str, object]:
        self.reporter.take_all()
        return dump.dump(
            self.config,
            self.store,
            self.identities.certificates(),
            self.pods,
            self.engine.connections(),
            self.names,
        )

    async def sweep_pods(self) -> None:
        """Let go of pods that the agent took back, once their last connection ended."""
        while True:
            await asyncio.sleep(1.0)
            self.pods.sweep(lambda: {event.pod for event in self.engine.connections()})

    def is_ready(self) -> bool:
        """Whether it serves, did until another one took over, or can as soon as one that hands nothing over ends."""
        if self.takeover.is_retired:
            return True
        return not self.pending() or (self.takeover.stands_by and self.ads.synced.is_set())

    def pending(self) -> list[str]:
        """What readiness waits for."""
        waiting = []
        if not self.ads.synced.is_set():
            waiting.append(f"controller {self.config.control.controller} ({self.ads.last_error})")
        if not self.agent.snapshot.is_set():
            waiting.append("the node agent's snapshot")
        if not self.takeover.is_done:
            waiting.append("the ztunnel before this one")
        if self.agent.failures:
            waiting.append(f"{len(self.agent.failures)} pods that cannot be served")
        return waiting


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then drain; raises what a part of the process failed with."""
    _raise_descriptor_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if config.ports.alive_file is not None:
            heart = await stack.enter_async_context(
                Background()
            )  # it beats from before there is anything to serve with
            heart.start(probe_file.keep_alive(config.ports.alive_file), "alive file")
        plane = await _or_stop(open_plane(config.key), stop)
        if plane is None:
            return
        stack.callback(plane.close)
        background = await stack.enter_async_context(Background())
        ztunnel = Ztunnel(config, plane, background)
        stack.callback(ztunnel.engine.close)
        stack.push_async_callback(ztunnel.link.close)
        has_predecessor = await ztunnel.takeover.look()
        stack.callback(ztunnel.takeover.close)
        for http in ztunnel.servers():
            await _open_port(http, stack, background, is_shared=has_predecessor)
        if config.ports.ready_file is not None:
            background.start(probe_file.keep(config.ports.ready_file, ztunnel.is_ready), "ready file")
        ztunnel.engine.start()
        stack.enter_context(EventPump(loop, ztunnel.engine.event_fd, ztunnel.reporter.take))
        background.start(ztunnel.ads.run(), "controller stream")
        agent = background.run_once(ztunnel.takeover.serve_pods(ztunnel.ads.synced), "agent link")
        handover = background.run_once(ztunnel.takeover.run(ztunnel.ads.synced), "hand-over")
        background.start(ztunnel.sweep_pods(), "pods that leave")
        background.start(ztunnel.earlier.run(), "connections from before enrolment")
        await _serve(ztunnel, background, stop)
        agent.cancel()  # a draining ztunnel takes no more pods
        handover.cancel()  # and has none to give
        await _drain(ztunnel)


async def _open_port(
    http: HttpServer, stack: contextlib.AsyncExitStack, background: Background, *, is_shared: bool
) -> None:
    """Listen; while the ztunnel before this one has the port, that is tried again until it has ended."""
    try:
        await stack.enter_async_context(http)
    except OSError as error:
        if not is_shared or error.errno != errno.EADDRINUSE:
            raise
        background.run_once(_open_later(http, stack), "port of the ztunnel before this one")


async def _open_later(http: HttpServer, stack: contextlib.AsyncExitStack) -> None:
    while True:
        await asyncio.sleep(PORT_RETRY_S)
        try:
            await stack.enter_async_context(http)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return


async def _serve(ztunnel: Ztunnel, background: Background, stop: asyncio.Event) -> None:
    waiting = {
        background.run_once(stop.wait(), "signal"),
        background.run_once(background.failed(), "failure of a part"),
        background.run_once(_say_when_ready(ztunnel), "readiness"),
    }
    while not stop.is_set():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _say_when_ready(ztunnel: Ztunnel) -> None:
    started = asyncio.get_running_loop().time()
    limit = ztunnel.config.control.start_timeout_s
    told = started
    while waiting := ztunnel.pending():
        now = asyncio.get_running_loop().time()
        if limit and now - started > limit:
            raise NotReadyInTime(f"not ready after {limit:.0f} s, pending: {', '.join(waiting)}")
        if now - told >= 10:
            log.warning("not ready, pending: %s", ", ".join(waiting))
            told = now
        await asyncio.sleep(0.02)
    log.info("ready after %.2f s", asyncio.get_running_loop().time() - started)


async def _drain(ztunnel: Ztunnel) -> None:
    deadline_s = ztunnel.config.data_path.drain_deadline_s
    log.info("draining, for %.0f s at most", deadline_s)
    ztunnel.engine.drain(deadline_s)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s + DRAIN_GRACE_S):
            await ztunnel.drained.wait()
    ztunnel.reporter.take_all()
    ztunnel.lines.close(LOG_GRACE_S)


async def _or_stop(opening: Coroutine[Any, Any, Plane], stop: asyncio.Event) -> Plane | None:
    """The plane, or None when the process is told to end while it waits for it."""
    async with asyncio.TaskGroup() as group:
        opened = group.create_task(opening)
        stopped = group.create_task(stop.wait())
        await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in (opened, stopped):
            task.cancel()
    return opened.result() if opened.done() and not opened.cancelled() else None


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
