"""The kernel's figures and ztunnel's agree with what was sent."""

from collections.abc import Iterator

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import Mesh
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]

COUNT = 20
SIZE = 1 << 20


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("metrics", tmp_path_factory.mktemp("metrics")) as running:
        for _ in range(COUNT):
            found = running.client("shop/client", "digest", "web", 7004, str(SIZE))
            assert found["sent"] == found["got"]
        yield running


@pytest.mark.parametrize(("node", "direction"), [("node-a", "outbound"), ("node-b", "inbound")])
def test_kernel_flows_agree_with_what_was_sent(mesh: Mesh, node: str, direction: str) -> None:
    edge = {"direction": direction, "source_pod": "client", "destination_pod": "web"}

    def value(name: str) -> float:
        return mesh.metrics(node, f"culvert_flow_{name}", **edge)

    eventually(lambda: value("connections_closed_total") == COUNT)
    assert value("connections_opened_total") == COUNT
    assert value("sent_bytes_total") == COUNT * SIZE
    assert value("received_bytes_total") == COUNT * 64
    assert value("rtt_seconds_count") > 0


def test_the_tunnel_has_connect_latency_and_round_trip_time(mesh: Mesh) -> None:
    edge = {"direction": "tunnel", "source_pod": "client", "destination_pod": "web"}
    assert mesh.metrics("node-a", "culvert_flow_connections_opened_total", **edge) >= 1
    assert 0 < mesh.metrics("node-a", "culvert_flow_connect_seconds_sum", **edge) < 1
    assert mesh.metrics("node-a", "culvert_flow_rtt_seconds_count", **edge) > 0
    assert mesh.metrics("node-a", "culvert_flow_sent_bytes_total", **edge) > COUNT * SIZE


def test_istio_counters_agree_on_both_reporters(mesh: Mesh) -> None:
    for node, reporter in (("node-a", "source"), ("node-b", "destination")):
        edge = {"reporter": reporter, "source_workload": "client", "destination_workload": "web"}
        assert mesh.metrics(node, "istio_tcp_connections_opened_total", **edge) == COUNT
        assert mesh.metrics(node, "istio_tcp_received_bytes_total", **edge) == COUNT * SIZE
        assert mesh.metrics(node, "istio_tcp_sent_bytes_total", **edge) == COUNT * 64
        assert (
            mesh.metrics(node, "istio_tcp_connections_opened_total", **edge, connection_security_policy="unknown") == 0
        )


def test_an_open_connection_is_counted_while_it_lasts(mesh: Mesh) -> None:
    edge = {"direction": "outbound", "source_pod": "other", "destination_pod": "web"}
    with mesh.staying("shop/other", "web", 7001, 6) as ended:
        eventually(lambda: mesh.metrics("node-a", "culvert_flow_sent_bytes_total", **edge) > 50)
        first = mesh.metrics("node-a", "culvert_flow_sent_bytes_total", **edge)
        eventually(lambda: mesh.metrics("node-a", "culvert_flow_sent_bytes_total", **edge) > first)
        count = ended()["count"]
    eventually(lambda: mesh.metrics("node-a", "culvert_flow_sent_bytes_total", **edge) == count * len("tick\n"))


def test_an_open_connection_counts_each_way_as_what_it_is(mesh: Mesh) -> None:
    """Much one way and little the other, on both nodes, before anything of it has ended."""
    code = (
        "import socket, sys, time; sock = socket.create_connection((sys.argv[1], 7002)); sock.recv(100);"
        "sock.sendall(b'x' * 500); print('open', flush=True); time.sleep(20)"
    )
    edge = {"source_pod": "other", "destination_pod": "web"}

    def grown(node: str, direction: str, figure: str, before: float) -> float:
        return mesh.metrics(node, f"culvert_flow_{figure}_bytes_total", direction=direction, **edge) - before

    sides = (("node-a", "outbound"), ("node-b", "inbound"))
    figures = [(*side, figure, grown(*side, figure, 0)) for side in sides for figure in ("sent", "received")]
    process = mesh.start("shop/other", "python3", "-c", code, mesh.ips("shop/web")[0])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        wanted = {"sent": 500, "received": len("220 mail.example ESMTP\r\n")}
        for node, direction, figure, before in figures:
            eventually(lambda: grown(node, direction, figure, before) == wanted[figure])  # noqa: B023 - called here
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_a_refused_connection_is_a_failure_with_its_reason(mesh: Mesh) -> None:
    mesh.client("shop/client", "try_connect", mesh.ips("shop/web")[0], 7999)
    edge = {"direction": "inbound", "source_pod": "client", "destination_pod": "web", "reason": "refused"}
    eventually(lambda: mesh.metrics("node-b", "culvert_flow_connections_failed_total", **edge) == 1)
    assert mesh.metrics("node-b", "culvert_refused_total", reason="connect_refused") >= 1
