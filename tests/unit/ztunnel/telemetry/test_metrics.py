from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from mesh.reasons import Reason
from tests.support.mesh import event, workload
from ztunnel.events import ConnectionEvent
from ztunnel.telemetry import metrics
from ztunnel.telemetry.labels import NAMES, Edge, response_flags
from ztunnel.telemetry.metrics import ConnectionMetrics

CLIENT, WEB = workload("client"), workload("web-1", service_account="web")
EDGE = Edge(True, CLIENT, WEB, None, str(CLIENT.identity), str(WEB.identity), True)


class Scrape:
    """Metrics over a list of open connections, and a clock that a test moves."""

    def __init__(self) -> None:
        self.open: list[tuple[ConnectionEvent, Edge]] = []
        self.now = 0.0
        self.metrics = ConnectionMetrics(self.live, lambda: self.now)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self.metrics)

    def live(self) -> Iterable[tuple[ConnectionEvent, Edge]]:
        return self.open

    def value(self, name: str, **labels: str) -> float:
        total = 0.0
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total


def test_open_and_closed_connections_count_bytes_once() -> None:
    scrape = Scrape()
    scrape.open = [(event(bytes_sent=100, bytes_received=10), EDGE)]
    assert scrape.value("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls") == 1
    assert scrape.value("istio_tcp_connections_closed_total") == 0
    assert scrape.value("istio_tcp_received_bytes_total", reporter="destination") == 100
    assert scrape.value("istio_tcp_sent_bytes_total") == 10
    scrape.open = []
    scrape.metrics.closed(event(bytes_sent=150, bytes_received=20), EDGE)
    assert scrape.value("istio_tcp_received_bytes_total") == 150
    assert scrape.value("istio_tcp_sent_bytes_total") == 20
    assert scrape.value("istio_tcp_connections_opened_total", connection_security_policy="mutual_tls") == 1
    assert scrape.value("istio_tcp_connections_closed_total", response_flags="-") == 1


def test_a_counter_never_falls_while_an_end_is_on_its_way() -> None:
    scrape = Scrape()
    scrape.open = [(event(bytes_sent=100), EDGE)]
    assert scrape.value("istio_tcp_received_bytes_total") == 100
    scrape.open = []  # ended, its event not read yet
    assert scrape.value("istio_tcp_received_bytes_total") == 100
    assert scrape.value("istio_tcp_connections_opened_total") == 1


def test_a_refusal_is_a_failure_with_its_flag_and_reason() -> None:
    scrape = Scrape()
    scrape.metrics.closed(event(opened=False, reason=Reason.POLICY_DENIED), EDGE)
    assert scrape.value("istio_tcp_connections_failed_total", response_flags="DENY") == 1
    assert scrape.value("istio_tcp_connections_closed_total") == 0
    assert scrape.value("culvert_connections_ended_total", direction="inbound", reason="policy_denied") == 1


def test_unused_edges_are_forgotten() -> None:
    scrape = Scrape()
    scrape.metrics.closed(event(), EDGE)
    scrape.now = metrics.EDGE_IDLE_S + 1
    generate_latest(scrape.registry)
    assert scrape.value("culvert_metric_series") == 0


def test_series_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    scrape = Scrape()
    for number in range(50):
        scrape.metrics.closed(event(), Edge(True, workload(f"w{number}"), WEB, None, "", "", False))
    assert scrape.value("culvert_metric_series") == 50
    monkeypatch.setattr(metrics, "MAX_SERIES", 50)
    scrape.metrics.closed(event(), Edge(True, workload("one-more"), WEB, None, "", "", False))
    assert scrape.value("culvert_metric_series") == 50
    assert scrape.value("culvert_metric_series_overflow_total") == 1


def test_unknown_ends_are_the_word_unknown() -> None:
    scrape = Scrape()
    scrape.metrics.closed(event(), Edge(False, None, None, None, "", "", False))
    labels = {name: "unknown" for name in NAMES if name not in ("reporter", "request_protocol", "response_flags")}
    assert scrape.value("istio_tcp_connections_opened_total", reporter="source", **labels) == 1


def test_every_reason_has_a_flag() -> None:
    assert {response_flags(reason) for reason in Reason} == {
        "-",
        "DENY",
        "CONNECT",
        "TLS_FAILURE",
        "H2_HANDSHAKE_FAILURE",
        "IDENTITY_ERROR",
    }
