"""The kernel's flow metrics, per edge of source and destination workload, as `culvert_flow_*` on /metrics.

The destination is a service where nobody chose an endpoint: a connect that is refused while no ztunnel runs.

The programs keep the figures in a pinned per-CPU map and go on counting while no ztunnel runs. What open sockets have
moved since their edge was last updated is asked from the engine at scrape time, so a figure is exact at each scrape; a
socket that closes in between is in neither, so a figure that was shown once never falls.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from bpf.layout import Direction
from bpf.plane import EdgeKey, EdgeStats
from ztunnel.events import FlowDelta
from ztunnel.model import Service, Workload

EDGE_LABELS = (
    "direction",
    "source_workload",
    "source_namespace",
    "source_pod",
    "destination_workload",
    "destination_namespace",
    "destination_pod",
    "destination_service",
)

End = Workload | Service


@dataclass(slots=True)
class _Shown:
    sent: int = 0
    received: int = 0
    labels: tuple[str, ...] = field(default_factory=tuple)


class FlowMetrics:
    """A prometheus_client collector over the pinned `edges` map."""

    def __init__(
        self,
        edges: Callable[[], Mapping[EdgeKey, EdgeStats]],
        open_flows: Callable[[], Iterable[FlowDelta]],
        named: Callable[[int], End | None],
        forget: Callable[[Iterable[EdgeKey]], None],
        is_complete: Callable[[], bool],
    ) -> None:
        self._edges = edges
        self._forget = forget
        self._is_complete = is_complete
        self._open_flows = open_flows
        self._named = named
        self._shown: dict[EdgeKey, _Shown] = {}

    def collect(self) -> Iterator[Metric]:
        """The families, for prometheus_client."""
        edges = self._known(self._edges())
        bytes_of = self._bytes(edges)
        counters = {
            name: CounterMetricFamily(f"culvert_flow_{name}", text, labels=EDGE_LABELS) for name, text in _TEXTS
        }
        failed = CounterMetricFamily(
            "culvert_flow_connections_failed", "Connects that failed", labels=(*EDGE_LABELS, "reason")
        )
        connect = HistogramMetricFamily(
            "culvert_flow_connect_seconds", "Time from SYN to established", labels=EDGE_LABELS
        )
        rtt = HistogramMetricFamily("culvert_flow_rtt_seconds", "Smoothed round trip time, sampled", labels=EDGE_LABELS)
        for key, (sent, received) in bytes_of.items():
            edge_labels = self._labels(key)
            counters["sent_bytes"].add_metric(edge_labels, sent)
            counters["received_bytes"].add_metric(edge_labels, received)
            stats = edges.get(key)
            if stats is None:
                continue
            counters["connections_opened"].add_metric(edge_labels, stats.opened)
            counters["connections_closed"].add_metric(edge_labels, stats.closed)
            counters["retransmits"].add_metric(edge_labels, stats.retransmits)
            for failure, count in stats.failed.items():
                failed.add_metric((*edge_labels, failure.name.lower()), count)
            connect.add_metric(edge_labels, _buckets(stats.connect_us), stats.connect_us_sum / 1e6)
            rtt.add_metric(edge_labels, _buckets(stats.rtt_us), stats.rtt_us_sum / 1e6)
        yield from counters.values()
        yield failed
        yield connect
        yield rtt

    def _known(self, edges: Mapping[EdgeKey, EdgeStats]) -> dict[EdgeKey, EdgeStats]:
        """Edges whose ends can be named; the kernel forgets the others, as their workloads are long gone.

        The slot that takes what does not fit (0 to 0) is there from the start and shown once it counted something.
        """
        stale = {key for key in edges if not (self._is_known(key.source) and self._is_known(key.destination))}
        if stale and self._is_complete():  # after a restart nobody is known at first
            self._forget(stale)
            for key in stale:
                self._shown.pop(key, None)
        return {key: stats for key, stats in edges.items() if key not in stale and not _is_unused(key, stats)}

    def _is_known(self, number: int) -> bool:
        return number == 0 or self._named(number) is not None

    def _bytes(self, edges: Mapping[EdgeKey, EdgeStats]) -> dict[EdgeKey, tuple[int, int]]:
        totals = {key: [stats.sent, stats.received] for key, stats in edges.items()}
        for delta in self._open_flows():
            total = totals.setdefault(EdgeKey(delta.source, delta.destination, Direction(delta.direction)), [0, 0])
            total[0] += delta.sent
            total[1] += delta.received
        found: dict[EdgeKey, tuple[int, int]] = {}
        for key, (sent, received) in totals.items():
            shown = self._shown.setdefault(key, _Shown())
            shown.sent = max(shown.sent, sent)
            shown.received = max(shown.received, received)
            found[key] = (shown.sent, shown.received)
        return found

    def _labels(self, key: EdgeKey) -> tuple[str, ...]:
        shown = self._shown[key]
        if not shown.labels:
            source, destination = self._named(key.source), self._named(key.destination)
            service = destination.hostname if isinstance(destination, Service) else "unknown"
            shown.labels = (key.direction.name.lower(), *_names(source), *_names(destination), service)
        return shown.labels


def _is_unused(key: EdgeKey, stats: EdgeStats) -> bool:
    return key.source == key.destination == 0 and not (stats.opened or sum(stats.failed.values()))


def _names(end: End | None) -> tuple[str, str, str]:
    if end is None:
        return ("unknown", "unknown", "unknown")
    if isinstance(end, Service):
        return ("unknown", end.namespace, "unknown")
    return (end.workload_name, end.namespace, end.name)


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Log2 microsecond counts as Prometheus' cumulative buckets in seconds."""
    total = 0
    found: list[tuple[str, float]] = []
    for index, count in enumerate(counts):
        total += count
        found.append((repr(2 ** (index + 1) / 1e6), float(total)))
    found[-1] = ("+Inf", float(total))
    return found


_TEXTS = (
    ("connections_opened", "Connections established"),
    ("connections_closed", "Established connections that ended"),
    ("sent_bytes", "Bytes from the source to the destination workload"),
    ("received_bytes", "Bytes from the destination to the source workload"),
    ("retransmits", "Segments sent again"),
)
