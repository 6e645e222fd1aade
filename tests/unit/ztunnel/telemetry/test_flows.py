from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from bpf.layout import Direction, Failure
from bpf.plane import EdgeKey, EdgeStats
from tests.support.mesh import workload
from ztunnel.events import FlowDelta
from ztunnel.model import Service
from ztunnel.telemetry.flows import FlowMetrics

WORKLOADS = {1: workload("client"), 2: workload("web-1")}
KEY = EdgeKey(1, 2, Direction.OUTBOUND)
BUCKETS = 24


def stats(**changes: int) -> EdgeStats:
    connect = [0] * BUCKETS
    connect[6] = 3  # three connects of 64 to 128 microseconds
    facts: dict[str, int] = {"opened": 3, "closed": 2, "sent": 1000, "received": 50, "retransmits": 1, **changes}
    return EdgeStats(
        **facts,
        failed={failure: (4 if failure is Failure.REFUSED else 0) for failure in Failure},
        connect_us_sum=300,
        rtt_us_sum=0,
        connect_us=tuple(connect),
        rtt_us=(0,) * BUCKETS,
    )


class Kernel:
    def __init__(self) -> None:
        self.edges: dict[EdgeKey, EdgeStats] = {KEY: stats()}
        self.open: list[FlowDelta] = []
        self.forgotten: list[EdgeKey] = []
        self.registry = CollectorRegistry(auto_describe=False)
        self.is_synced = True
        self.registry.register(
            FlowMetrics(self.read, lambda: self.open, WORKLOADS.get, self.forget, lambda: self.is_synced)
        )

    def read(self) -> dict[EdgeKey, EdgeStats]:
        return dict(self.edges)

    def forget(self, keys: Iterable[EdgeKey]) -> None:
        for key in keys:
            self.forgotten.append(key)
            del self.edges[key]

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(sample.labels.values()): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        }


EDGE = ("outbound", "client", "shop", "client", "web-1", "shop", "web-1", "unknown")


def test_an_edge_is_named_by_its_workloads() -> None:
    kernel = Kernel()
    assert kernel.samples("culvert_flow_connections_opened_total") == {EDGE: 3}
    assert kernel.samples("culvert_flow_connections_failed_total")[(*EDGE, "refused")] == 4
    assert kernel.samples("culvert_flow_retransmits_total") == {EDGE: 1}


def test_open_sockets_count_before_their_edge_does() -> None:
    kernel = Kernel()
    kernel.open = [FlowDelta(1, 2, Direction.OUTBOUND, 24, 0), FlowDelta(1, 2, Direction.OUTBOUND, 1, 5)]
    assert kernel.samples("culvert_flow_sent_bytes_total") == {EDGE: 1025}
    assert kernel.samples("culvert_flow_received_bytes_total") == {EDGE: 55}
    kernel.open = []  # closed between the two looks: in neither figure
    assert kernel.samples("culvert_flow_sent_bytes_total") == {EDGE: 1025}


def test_an_edge_that_only_open_sockets_have_is_shown() -> None:
    kernel = Kernel()
    kernel.open = [FlowDelta(2, 1, Direction.INBOUND, 9, 0)]
    shown = kernel.samples("culvert_flow_sent_bytes_total")
    assert shown[("inbound", "web-1", "shop", "web-1", "client", "shop", "client", "unknown")] == 9


def test_latencies_are_cumulative_in_seconds() -> None:
    buckets = Kernel().samples("culvert_flow_connect_seconds_bucket")
    by_bound = {labels[-1]: count for labels, count in buckets.items()}
    assert by_bound["6.4e-05"] == 0
    assert by_bound["0.000128"] == 3
    assert by_bound["+Inf"] == 3


def test_edges_that_nobody_can_name_are_given_back_to_the_kernel() -> None:
    kernel = Kernel()
    gone = EdgeKey(1, 99, Direction.OUTBOUND)
    kernel.edges[gone] = stats()
    kernel.edges[EdgeKey(0, 2, Direction.INBOUND)] = stats()
    assert len(kernel.samples("culvert_flow_sent_bytes_total")) == 2
    assert kernel.forgotten == [gone]


def test_before_the_first_snapshot_nobody_is_long_gone() -> None:
    kernel = Kernel()
    kernel.is_synced = False
    kernel.edges[EdgeKey(1, 99, Direction.OUTBOUND)] = stats()
    assert kernel.samples("culvert_flow_connections_opened_total") == {EDGE: 3}
    assert kernel.forgotten == []


def test_an_edge_without_an_endpoint_is_named_by_its_service() -> None:
    kernel = Kernel()
    ends = {1: workload("client"), 9: Service("web.shop.svc", "shop")}
    kernel.edges = {EdgeKey(1, 9, Direction.OUTBOUND): stats()}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FlowMetrics(kernel.read, lambda: [], ends.get, kernel.forget, lambda: True))
    labels = {"destination_workload": "unknown", "destination_namespace": "shop", "destination_pod": "unknown"}
    source = {"source_workload": "client", "source_namespace": "shop", "source_pod": "client"}
    labels |= source | {"direction": "outbound", "destination_service": "web.shop.svc", "reason": "refused"}
    assert registry.get_sample_value("culvert_flow_connections_failed_total", labels) == 4
