"""Figures of the process itself: its engine, its control plane stream, its certificates and pods."""

import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mesh.reasons import Reason
from ztunnel.control.ads import AdsClient
from ztunnel.identity.manager import IdentityManager
from ztunnel.inpod.agent_link import AgentLink
from ztunnel.inpod.pods import PodTable
from ztunnel.view import View


@dataclass(frozen=True, slots=True)
class EngineStats:
    """`struct cv_stats` of the engine's border; pairs are (as client, as server)."""

    accepted: int
    refused: Sequence[int]
    tunnels_opened: tuple[int, int]
    tunnels_closed: tuple[int, int]
    handshakes_failed: tuple[int, int]
    handshakes_resumed: tuple[int, int]
    pool_hits: int
    pool_misses: int
    events_dropped: int
    bytes_buffered: int
    connections_open: int
    tunnels_open: int
    spun_us: int


_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("culvert_accepted", "Connections taken on any in-pod listener", lambda stats: stats.accepted),
    ("culvert_pool_hits", "Connections that found a tunnel", lambda stats: stats.pool_hits),
    ("culvert_pool_misses", "Connections that had a tunnel dialled", lambda stats: stats.pool_misses),
    ("culvert_events_dropped", "Connections that no log line tells of", lambda stats: stats.events_dropped),
    ("culvert_spun_seconds", "Processor time of polling before sleeping", lambda stats: stats.spun_us / 1e6),
)
_PAIRS: tuple[tuple[str, str, Callable[[EngineStats], tuple[int, int]]], ...] = (
    ("culvert_tunnels_opened", "Tunnels established", lambda stats: stats.tunnels_opened),
    ("culvert_tunnels_closed", "Tunnels ended", lambda stats: stats.tunnels_closed),
    ("culvert_handshakes_failed", "TLS handshakes that failed", lambda stats: stats.handshakes_failed),
)
_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], int]], ...] = (
    ("culvert_connections_open", "Application connections now", lambda stats: stats.connections_open),
    ("culvert_tunnels_open", "Tunnels now", lambda stats: stats.tunnels_open),
    ("culvert_buffered_bytes", "Bytes read and not yet written on", lambda stats: stats.bytes_buffered),
)


class ProcessMetrics:
    """A prometheus_client collector over the parts of a running ztunnel."""

    def __init__(
        self,
        version: str,
        engine: Callable[[], EngineStats],
        ads: AdsClient,
        identities: IdentityManager,
        pods: PodTable,
        agent: AgentLink,
        view: View,
    ) -> None:
        self._version = version
        self._engine = engine
        self._ads = ads
        self._identities = identities
        self._pods = pods
        self._agent = agent
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """The families, for prometheus_client."""
        build = GaugeMetricFamily("istio_build", "Version of this process", labels=["component", "tag"])
        build.add_metric(("ztunnel", self._version), 1)
        yield build
        yield from self._of_engine(self._engine())
        yield from self._of_stream()
        yield GaugeMetricFamily("workload_manager_active_proxy_count", "Pods served", value=len(list(self._pods)))
        yield GaugeMetricFamily(
            "workload_manager_pending_proxy_count", "Pods that cannot be served", value=len(self._agent.failures)
        )
        held = self._identities.certificates()
        expiry = GaugeMetricFamily(
            "culvert_certificate_expiry_timestamp_seconds", "When a certificate ends", labels=["identity"]
        )
        for identity, (svid, _) in held.items():
            if svid is not None:
                expiry.add_metric((str(identity),), svid.not_after.timestamp())
        yield expiry
        pending = len(self._identities.pending)
        yield GaugeMetricFamily("culvert_certificates_pending", "Identities without a certificate", value=pending)
        yield policies_not_understood(self._view)
        yield from _of_process()

    def _of_engine(self, stats: EngineStats) -> Iterator[Metric]:
        for name, meaning, read in _COUNTERS:
            yield CounterMetricFamily(name, meaning, value=read(stats))
        for name, meaning, read_pair in _PAIRS:
            family = CounterMetricFamily(name, meaning, labels=["role"])
            for role, value in zip(("client", "server"), read_pair(stats), strict=True):
                family.add_metric((role,), value)
            yield family
        for name, meaning, read in _GAUGES:
            yield GaugeMetricFamily(name, meaning, value=read(stats))
        refused = CounterMetricFamily("culvert_refused", "Connections that never opened, by reason", labels=["reason"])
        for reason in Reason:
            if count := stats.refused[reason]:
                refused.add_metric((str(reason),), count)
        yield refused

    def _of_stream(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "culvert_controller_connected", "Whether the stream is up", value=int(self._ads.connected)
        )
        families: tuple[tuple[str, str, str, Mapping[str, int]], ...] = (
            ("istio_xds_connection_terminations", "Ends of the stream", "reason", self._ads.terminations),
            ("istio_xds_message", "Responses received", "url", self._ads.messages),
            ("istio_xds_message_bytes", "Bytes of responses received", "url", self._ads.message_bytes),
        )
        for name, meaning, label, values in families:
            family = CounterMetricFamily(name, meaning, labels=[label])
            for key, value in values.items():
                family.add_metric((key,), value)
            yield family


def policies_not_understood(view: View) -> Metric:
    """How many policies there are whose newest version nobody understood."""
    family = GaugeMetricFamily(
        "culvert_policies_not_understood",
        "Policies whose newest version is not understood, by what is in force instead",
        labels=["in_force"],
    )
    kept = {"deny_all": 0, "version_before": 0, "nothing": 0}
    for name in view.policy_faults:
        policy = view.policy(view.policy_number(name))
        kept["nothing" if policy is None else "deny_all" if policy.fault else "version_before"] += 1
    for label, count in kept.items():
        family.add_metric((label,), count)
    return family


def _of_process() -> Iterator[Metric]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield GaugeMetricFamily(
        "process_resident_memory_bytes", "Resident memory", value=resident_pages * os.sysconf("SC_PAGE_SIZE")
    )
    yield CounterMetricFamily("process_cpu_seconds", "CPU time", value=usage.ru_utime + usage.ru_stime)
    yield GaugeMetricFamily("process_open_fds", "Open descriptors", value=len(os.listdir("/proc/self/fd")))  # noqa: PTH208
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield GaugeMetricFamily("process_max_fds", "Limit of open descriptors", value=soft)
