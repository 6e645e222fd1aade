"""Counters of this node on /metrics: connections per edge, the process, the control plane, the kernel's flows.

Connection counters are kept per edge in plain Python and turned into Prometheus families at scrape time; connections
that are still open, and their bytes, are added then, so a counter is exact at each scrape and never falls, and a
connection costs one event.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mesh.reasons import Reason
from ztunnel.events import ConnectionEvent
from ztunnel.telemetry import labels
from ztunnel.telemetry.labels import Edge

# An edge that nothing has used for so long is forgotten, else years of pod names would pile up.
EDGE_IDLE_S = 3600.0
# Beyond this many label sets new ones are counted together, so that a scan of the pod network costs bounded memory.
MAX_SERIES = 20_000


@dataclass(slots=True)
class _Series:
    closed: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0
    shown_opened: int = 0  # the last figure that a scrape got, open connections included
    shown_sent: int = 0
    shown_received: int = 0
    used_at: float = 0.0


class ConnectionMetrics:
    """The `istio_tcp_*` counters; a prometheus_client collector, fed from the event loop.

    `sent` and `received` follow Istio's orientation: received is what the connecting side sent, on both reporters.
    """

    def __init__(
        self,
        live: Callable[[], Iterable[tuple[ConnectionEvent, Edge]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live = live
        self._clock = clock
        self._series: dict[tuple[str, ...], _Series] = {}
        self._overflow = _Series()
        self._by_reason: dict[tuple[str, str], int] = {}

    def closed(self, event: ConnectionEvent, edge: Edge) -> None:
        """A connection ended, or was refused before it opened."""
        reason = Reason(event.reason)
        key = ("inbound" if edge.inbound else "outbound", str(reason))
        self._by_reason[key] = self._by_reason.get(key, 0) + 1
        flags = labels.response_flags(reason)
        if not event.opened:
            self._find(edge, flags).failed += 1
            return
        series = self._find(edge, "-")
        series.closed += 1
        series.received += event.bytes_sent
        series.sent += event.bytes_received
        if flags != "-":
            self._find(edge, flags).failed += 1

    def collect(self) -> Iterator[Metric]:
        """The families, for prometheus_client."""
        self._refresh_live()
        for name, meaning, read in _FAMILIES:
            family = CounterMetricFamily(name, meaning, labels=labels.NAMES)
            for key, series in self._series.items():
                if value := read(series):
                    family.add_metric(key, value)
            yield family
        ended = CounterMetricFamily(
            "culvert_connections_ended",
            "Connections by direction and reason of their end",
            labels=["direction", "reason"],
        )
        for (direction, reason), count in sorted(self._by_reason.items()):
            ended.add_metric((direction, reason), count)
        yield ended
        yield GaugeMetricFamily("culvert_metric_series", "Label sets of istio_tcp_*", value=len(self._series))
        lost = self._overflow.closed + self._overflow.failed
        yield CounterMetricFamily("culvert_metric_series_overflow", "Connections beyond the series bound", value=lost)

    def _find(self, edge: Edge, flags: str) -> _Series:
        key = labels.values(edge, flags)
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                return self._overflow
            series = self._series[key] = _Series()
        series.used_at = self._clock()
        return series

    def _refresh_live(self) -> None:
        live: dict[int, tuple[int, int, int]] = {}
        for event, edge in self._live():
            series = self._find(edge, "-")
            count, sent, received = live.get(id(series), (0, 0, 0))
            live[id(series)] = (count + 1, sent + event.bytes_received, received + event.bytes_sent)
        for series in self._series.values():
            count, sent, received = live.get(id(series), (0, 0, 0))
            # A connection that ended since the events were last read is in neither figure: a counter never falls.
            series.shown_opened = max(series.shown_opened, series.closed + count)
            series.shown_sent = max(series.shown_sent, series.sent + sent)
            series.shown_received = max(series.shown_received, series.received + received)
        oldest = self._clock() - EDGE_IDLE_S
        for key in [key for key, series in self._series.items() if series.used_at < oldest]:
            del self._series[key]


_FAMILIES: tuple[tuple[str, str, Callable[[_Series], int]], ...] = (
    ("istio_tcp_connections_opened", "Connections opened", lambda series: series.shown_opened),
    ("istio_tcp_connections_closed", "Connections closed", lambda series: series.closed),
    ("istio_tcp_connections_failed", "Connections that failed", lambda series: series.failed),
    (
        "istio_tcp_received_bytes",
        "Bytes from the connecting to the accepting side",
        lambda series: series.shown_received,
    ),
    (
        "istio_tcp_sent_bytes",
        "Bytes from the accepting to the connecting side",
        lambda series: series.shown_sent,
    ),
)
