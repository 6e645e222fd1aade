"""The node agent as a process: puts the parts together, starts them in order and ends them.

Start: programs are loaded (or found intact), what the kernel holds is compared with the pods that run, then ztunnels
may connect, then the controller is told. SIGTERM ends the process and nothing else: programs, links and maps stay, so
connections notice neither a restart nor an upgrade.
"""

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bpf.features import has_guard
from daemonset.agent import Agent, Here, KernelNamespaces
from daemonset.annotated import Annotations
from daemonset.config import Config
from daemonset.controller_link import ControllerLink
from daemonset.enrolment import KernelFault, Pace, World
from daemonset.fallback import FallbackGuard
from daemonset.kernel import NodeKernel
from daemonset.lock import only_agent, running_agent
from daemonset.pods import PodSource
from daemonset.programs import LoadFailed, run_loader
from daemonset.reports import OpenStream, Reports
from daemonset.runtime import RuntimeSource
from daemonset.status import Sources, Status
from daemonset.ztunnels import Ztunnels
from mesh import probe_file
from mesh.aio import Background
from mesh.http import HttpServer
from mesh.netns import cookie as netns_cookie
from mesh.sockdiag import SockDiag

if TYPE_CHECKING:
    from daemonset.cluster.node import ClusterNode

log = logging.getLogger(__name__)

OWN_NETNS = Path("/proc/self/ns/net")


class SetReplaced(Exception):
    """The node's programs or maps are not those that we work with any more: only a new start helps."""


class LoopClock:
    """Time of the event loop."""

    def after(self, seconds: float) -> asyncio.Future[None]:
        """Done after so many seconds."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, lambda: None if future.done() else future.set_result(None))
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()


def count_connections(netns: int) -> int:
    """Established TCP connections of a namespace that leave it; raises OSError."""
    with SockDiag(netns) as diag:
        return sum(not found.is_loopback for found in diag.established())


async def run(config: Config) -> None:
    """Work until SIGTERM or SIGINT; raises what made it impossible to go on."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    config.place.runtime.mkdir(parents=True, exist_ok=True)
    status = Status(Sources(config.place.node, config.key))
    async with Background() as background:
        if config.ports.alive_file is not None:
            background.start(probe_file.keep_alive(config.ports.alive_file), "alive file")
        if config.ports.ready_file is not None:
            background.start(probe_file.keep(config.ports.ready_file, lambda: status.sources.is_ready), "ready file")
        background.start(_hold(config, status), "agent")
        stopped = background.run_once(stop.wait(), "signals")
        failed = background.run_once(background.failed(), "failures")
        await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await background.failed()
        log.info("stopping; programs, links and maps stay in place")


async def _hold(config: Config, status: Status) -> None:
    """Work as the only agent of this node, once that is free to be."""
    runtime, enrolment = config.place.runtime, config.enrolment
    if enrolment.standby and (holder := running_agent(runtime)):
        log.info("standing by for the agent that works here (pid %s)", holder)
        status.sources.stands_by = True
    async with only_agent(runtime, None if enrolment.standby else enrolment.handover_s):
        status.sources.stands_by = False
        async with (
            Background() as background,
            HttpServer(config.ports.status_host, config.ports.status_port, status.routes()),
        ):
            background.start(status.keep_file(runtime / "agent-status.json"), "status file")
            background.start(_work_on(config, status), "work")
            await background.failed()


async def _work_on(config: Config, status: Status) -> None:
    if config.place.pod_source != "kubernetes":
        await _work(config, status, RuntimeSource(config.place.runtime))
        return
    from daemonset.cluster.node import ClusterNode  # noqa: PLC0415 - TLS and HTTP, which other nodes do without

    cluster = ClusterNode(config, status.sources)
    status.sources.cluster = cluster
    async with cluster.serving():
        await _work(config, status, cluster.source, cluster)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What works once the programs are in place."""

    agent: Agent
    kernel: NodeKernel
    ztunnels: Ztunnels
    reports: Reports
    background: Background


async def _work(config: Config, status: Status, source: PodSource, cluster: "ClusterNode | None" = None) -> None:
    sources = status.sources
    sources.step = "programs to be loaded"
    sources.loader = await _load_programs(config)
    no_guard = _no_guard(config.enrolment.guard)
    with NodeKernel.open(config.key, no_guard=no_guard) as kernel:
        node_cookie = netns_cookie(OWN_NETNS)
        kernel.set_node(node_cookie)
        reports = Reports(config.place.node, _open_reports(config, cluster))
        async with Ztunnels(config.zds_socket) as ztunnels, Background() as background:

            def changed() -> None:
                status.changed()
                reports.refuse([*agent.refused(), *agent.conflicts()])
                if cluster is not None:
                    cluster.changed()

            world = World(kernel, ztunnels, reports, LoopClock(), count_connections, changed)
            enrolment = config.enrolment
            pace = Pace(enrolment.settle_s, enrolment.retry_first_s, enrolment.retry_max_s)
            here = Here(config.place.node, node_cookie, enrolment.istio_labels)
            namespaces = cluster.sandboxes if cluster is not None else KernelNamespaces()
            agent = Agent(here, world, pace, namespaces, background)
            ztunnels.on_lost = agent.lost
            sources.agent, sources.kernel, sources.ztunnels, sources.reports = agent, kernel, ztunnels, reports
            parts = _Parts(agent, kernel, ztunnels, reports, background)
            background.start(ztunnels.failed(), "ztunnel server")
            guard = FallbackGuard(kernel, ztunnels, world.clock, enrolment.fallback_s)
            background.start(guard.run(), "fallback of pods")
            background.start(_follow(source, parts, status, enrolment.watch_pins_s, cluster), "pods")
            await background.failed()


def _no_guard(setting: str) -> str:
    """Why no pod is guarded; empty: they are."""
    if setting == "off":
        return "the setting --guard is off"
    return "" if has_guard() else "this kernel lacks programs on network links (tcx, Linux 6.6)"


def _open_reports(config: Config, cluster: "ClusterNode | None") -> OpenStream:
    if config.control.control_plane == "culvert":
        return _controller_link(config).open
    return Annotations(_nothing_to_write if cluster is None else cluster.written).open


async def _nothing_to_write() -> None:
    """Whoever runs the pods writes their documents."""


def _controller_link(config: Config) -> ControllerLink:
    control = config.control
    directory = config.place.runtime / "credentials"
    return ControllerLink(
        control.controller, control.controller_name, directory, control.token, control.cluster_id, control.roots
    )


async def _load_programs(config: Config) -> str:
    """Bring the programs into place; the reason why an older set has to do, or "". Raises LoadFailed."""
    try:
        log.info("programs: %s", (await run_loader("load", config.key, config.enrolment.load_timeout_s)).strip())
    except LoadFailed as failure:
        try:
            with NodeKernel.open(config.key) as kernel:
                missing = kernel.missing()
        except KernelFault:
            raise failure from None
        if missing:
            raise
        log.error("%s; going on with the programs that are in place", failure)
        return str(failure)
    return ""


async def _follow(
    source: PodSource, parts: _Parts, status: Status, watch_pins_s: float, cluster: "ClusterNode | None"
) -> None:
    """Reconcile with each list of pods; the first one opens the doors to ztunnels and controller."""
    status.sources.step = "the first list of pods"
    is_first = True
    async for snapshot in source.snapshots():
        if not is_first:
            parts.agent.reconcile(snapshot)
            continue
        is_first = False
        parts.agent.start(snapshot, parts.kernel.held())
        parts.ztunnels.open()
        parts.background.start(parts.reports.run(), "reports")
        if cluster is not None:
            cluster.annotate(parts.agent, parts.background)
        parts.background.start(_watch_pins(parts, watch_pins_s), "pins")
        status.sources.step = ""
        log.info("ready; %d pods on this node", len(snapshot.pods))


async def _watch_pins(parts: _Parts, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        if missing := parts.kernel.missing():
            raise SetReplaced(f"the node's set has changed under us: {missing}")
        parts.agent.check_guards()
        parts.agent.check_ports()
