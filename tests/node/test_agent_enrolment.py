"""The agent as a process, with real programs, namespaces and sockets (topology: agent_stage.py)."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.layout import PodFlag
from bpf.plane import Plane
from mesh.zds import Add, Del, SnapshotSent
from tests.bpf.dialling import dial
from tests.node.agent_stage import AgentStage, ZtunnelStub, until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def stage(machine: None) -> Iterator[AgentStage]:
    with AgentStage() as made:
        yield made


def peer(connection: socket.socket) -> str:
    name: str = connection.getpeername()[0]
    return name


def accepts(listener: socket.socket) -> str:
    connection, _ = listener.accept()
    with connection:
        return peer(connection)


def enrol_a(stage: AgentStage) -> None:
    stage.add_pod("a", stage.net.a)
    stage.enable()


def test_an_enrolled_pod_is_captured_both_ways_then_reported(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane) as ztunnel, stage.net.out.listen("0.0.0.0", 8080) as web:
        row = stage.reaches("a", "captured")
        assert row["captured"] is True
        assert row["netns_cookie"] == stage.net.a.cookie
        until(lambda: stage.controller.captured() == {"a"}, "report")
        listeners = ztunnel.pods["uid-a"]
        with dial(stage.net.a, stage.net.out.ip4, 8080):
            accepts(listeners[15001])
        with dial(stage.net.out, stage.net.a.ip4, 9000):
            assert accepts(listeners[15006]) == stage.net.out.ip4
        with dial(stage.net.out, stage.net.a.ip4, 15008):
            assert accepts(listeners[15008]) == stage.net.out.ip4
        web.settimeout(0.2)
        with pytest.raises(TimeoutError):  # nothing went out in clear
            web.accept()
        assert ztunnel.heard[0] == Add("uid-a", "shop", "a", "a")
        assert 'culvert_agent_pods{state="captured"} 1' in stage.get("/metrics")
        captured = re.search(r'program_exits_total\{exit="connect_captured"\} (\d+)', stage.get("/metrics"))
        assert captured is not None
        assert int(captured[1]) >= 1


def test_without_ztunnel_nothing_is_captured_and_nothing_breaks(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start()
    with stage.net.out.listen("0.0.0.0", 8080) as web:
        assert stage.reaches("a", "waiting")["reason"] == "waiting for ztunnel"
        with dial(stage.net.a, stage.net.out.ip4, 8080):
            assert accepts(web) == stage.net.a.ip4
    assert stage.controller.captured() == set()
    assert stage.plane.pods() == {}


def test_unlabelling_drains_before_it_releases_and_open_connections_live(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane) as ztunnel, stage.net.out.listen("0.0.0.0", 8080) as web:
        stage.reaches("a", "captured")
        until(lambda: stage.controller.captured() == {"a"}, "report")
        listeners = ztunnel.pods["uid-a"]
        with dial(stage.net.a, stage.net.out.ip4, 8080) as older:
            relayed, _ = listeners[15001].accept()
            stage.controller.allow(False)
            stage.label(shop={})
            assert stage.reaches("a", "draining")["captured"] is False
            with dial(stage.net.a, stage.net.out.ip4, 8080):
                assert accepts(web) == stage.net.a.ip4
            with stage.net.a.listen("0.0.0.0", 9000) as app, dial(stage.net.out, stage.net.a.ip4, 9000):
                assert accepts(app) == stage.net.out.ip4
            with dial(stage.net.out, stage.net.a.ip4, 15008):  # peers that have not heard yet
                assert accepts(listeners[15008]) == stage.net.out.ip4
            assert Del("uid-a") not in ztunnel.heard
            stage.controller.allow(True)
            stage.reaches("a", "")
            assert ztunnel.heard[-1] == Del("uid-a")
            assert stage.controller.captured() == set()
            with relayed:
                older.send(b"still here")
                assert relayed.recv(64) == b"still here"
    plane = stage.plane
    assert (plane.pods(), plane.addresses(), plane.inbound_links()) == ({}, {}, {})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_capture_outlives_the_agent_and_the_next_one_takes_over(stage: AgentStage, number: int) -> None:
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane) as ztunnel:
        stage.reaches("a", "captured")
        until(lambda: stage.controller.captured() == {"a"}, "report")
        listeners = ztunnel.pods["uid-a"]
        assert stage.stop(number) == (0 if number == signal.SIGTERM else -number)
        with dial(stage.net.a, stage.net.out.ip4, 8080):
            accepts(listeners[15001])
        reports = len(stage.controller.reports)
        stage.start()
        assert stage.pod("a")["captured"] is True
        with dial(stage.net.a, stage.net.out.ip4, 8080):
            accepts(listeners[15001])
        until(lambda: len(stage.controller.reports) > reports, "report of the new agent")
        assert all([pod.name for pod in report.pods] == ["a"] for report in stage.controller.reports[reports:]), (
            "a restart must never look like an un-enrolment"
        )
        assert stage.pod("a")["state"] == "waiting"
    with ZtunnelStub(stage.runtime, stage.plane) as again:
        stage.reaches("a", "captured")
        until(lambda: SnapshotSent() in again.heard, "snapshot")


def test_what_changed_while_the_agent_was_away_is_made_good(stage: AgentStage) -> None:
    stage.add_pod("b", stage.net.b)
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        stage.reaches("b", "captured")
        stage.stop()
        stage.remove_pod("b")
        stage.add_pod("a", stage.net.a, labels={"culvert.io/mesh": "disabled"})
        stage.start()
        stage.reaches("a", "")
    plane = stage.plane
    assert (plane.pods(), plane.addresses(), plane.inbound_links()) == ({}, {}, {})


def test_a_dead_ztunnel_means_refused_and_its_successor_serves_again(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
    assert stage.reaches("a", "waiting")["captured"] is True
    with stage.net.out.listen("0.0.0.0", 8080), stage.net.a.listen("0.0.0.0", 9000):
        with pytest.raises(ConnectionRefusedError):
            dial(stage.net.a, stage.net.out.ip4, 8080)
        with pytest.raises(ConnectionRefusedError):
            dial(stage.net.out, stage.net.a.ip4, 9000)
    assert stage.controller.captured() == {"a"}
    with ZtunnelStub(stage.runtime, stage.plane) as ztunnel:
        stage.reaches("a", "captured")
        with dial(stage.net.a, stage.net.out.ip4, 8080):
            accepts(ztunnel.pods["uid-a"][15001])


def test_a_pod_that_listens_on_a_mesh_port_is_refused_with_its_reason(stage: AgentStage) -> None:
    enrol_a(stage)
    with stage.net.a.listen("0.0.0.0", 15008):
        stage.start()
        with ZtunnelStub(stage.runtime, stage.plane):
            row = stage.reaches("a", "refused")
            assert row["refused"] == "port_in_use"
            assert "port of the mesh" in row["reason"]
            assert stage.plane.pods() == {}
            assert stage.controller.captured() == set()


def test_a_process_that_wants_a_mesh_port_of_a_captured_pod_is_told_of(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start("--watch-pins-s", "0.2")
    with ZtunnelStub(stage.runtime, stage.plane):
        assert stage.reaches("a", "captured")["conflict"] == ""
        for port in (15006, 8080):
            with stage.net.a.socket() as wanted, contextlib.suppress(OSError):
                wanted.bind(("0.0.0.0", port))
        until(lambda: stage.pod("a")["conflict"], "the conflict is told")
        assert "TCP port 15006 (bind" in stage.pod("a")["conflict"]
        assert stage.pod("a")["state"] == "captured"
        assert "pod shop/a: a process of the pod was refused TCP port 15006" in stage.log
        until(lambda: stage.controller.refused() == {("a", "port_reserved")}, "the controller is told")
        assert stage.controller.captured() == {"a"}


def test_pods_of_the_nodes_network_and_of_another_nodes_set_are_refused(stage: AgentStage) -> None:
    other = f"{stage.key}-other"
    stage.loader("load", other)
    try:
        with Plane.open(other) as foreign:
            foreign.enrol(stage.net.a.cookie, stage.net.a.address4, None, PodFlag.CAPTURE)
        enrol_a(stage)
        stage.add_pod("host", stage.net.node)
        stage.add_pod("nowhere", stage.net.b, netns="/run/netns/cvf-absent")
        stage.start()
        with ZtunnelStub(stage.runtime, stage.plane):
            assert stage.reaches("host", "refused")["refused"] == "host_network"
            assert "cvf-absent" in stage.reaches("nowhere", "refused")["reason"]
            assert stage.reaches("a", "refused")["refused"] == "other_set"
            assert stage.plane.pods() == {}
    finally:
        stage.loader("unload", other)
        (Path("/run/culvert") / other / "bpf" / "lock").unlink()
        (Path("/run/culvert") / other / "bpf").rmdir()
        (Path("/run/culvert") / other).rmdir()


def test_connections_from_before_are_counted_and_go_on(stage: AgentStage) -> None:
    with stage.net.out.listen("0.0.0.0", 8080) as web, dial(stage.net.a, stage.net.out.ip4, 8080) as older:
        served, _ = web.accept()
        enrol_a(stage)
        stage.start()
        with ZtunnelStub(stage.runtime, stage.plane), served:
            assert stage.reaches("a", "captured")["pre_enrolment"] == 1
            older.send(b"x")
            assert served.recv(1) == b"x"


def test_a_controller_that_is_away_does_not_hinder_enrolment(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start("--controller", "127.0.0.1:9")
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        status = json.loads(stage.get("/status"))
        assert status["controller"]["connected"] is False
        assert "unavailable" in until(lambda: json.loads(stage.get("/status"))["controller"]["problem"], "problem")


def test_unloading_under_a_running_agent_is_refused_and_forcing_it_restarts_the_agent(stage: AgentStage) -> None:
    stage.start("--watch-pins-s", "0.2")
    command = [sys.executable, "-m", "daemonset", "unload", "--key", stage.key]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    subprocess.run([*command, "--force"], check=True, capture_output=True, timeout=60)
    assert stage.agent is not None
    assert stage.agent.wait(15) == 1
    assert "has changed under us" in stage.log
    stage.start()


def test_upgrading_under_a_running_agent_changes_nothing_for_it(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane) as ztunnel:
        stage.reaches("a", "captured")
        command = [sys.executable, "-m", "daemonset", "upgrade-bpf", "--key", stage.key]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        with dial(stage.net.a, stage.net.out.ip4, 8080):
            accepts(ztunnel.pods["uid-a"][15001])
        with dial(stage.net.out, stage.net.a.ip4, 9000):
            accepts(ztunnel.pods["uid-a"][15006])
        stage.add_pod("b", stage.net.b)
        stage.reaches("b", "captured")


def test_a_namespace_that_is_deleted_takes_the_pod_with_it(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        subprocess.run(["ip", "netns", "del", stage.net.a.name], check=True)
        stage.remove_pod("a")
        stage.reaches("a", "")
        plane = stage.plane
        assert (plane.pods(), plane.addresses(), plane.inbound_links()) == ({}, {}, {})


def test_a_second_agent_on_the_same_node_ends_with_a_reason(stage: AgentStage) -> None:
    stage.start()
    first = stage.agent
    assert first is not None
    stage.agent = None
    try:
        stage.start("--status-port", "0", "--handover-s", "0.3", ready=False)
        assert stage.agent is not None
        assert stage.agent.wait(20) == 1
        assert f"(pid {first.pid})" in stage.log
    finally:
        stage.stop()
        stage.agent = first


def test_the_agent_is_small(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        until(lambda: stage.controller.captured() == {"a"}, "report")
        assert stage.agent is not None
        fields = Path(f"/proc/{stage.agent.pid}/status").read_text()
        resident = int(re.search(r"VmRSS:\s+(\d+) kB", fields)[1])  # type: ignore[index]
        anonymous = int(re.search(r"RssAnon:\s+(\d+) kB", fields)[1])  # type: ignore[index]
        print(f"agent: {resident} kB resident, {anonymous} kB of it private")
        assert resident < 48_000
        assert anonymous < 28_000


def test_istios_label_enrols_a_pod_only_where_it_is_honoured(stage: AgentStage) -> None:
    stage.add_pod("a", stage.net.a)
    stage.add_pod("b", stage.net.b, labels={"istio.io/dataplane-mode": "none"})
    stage.label(shop={"istio.io/dataplane-mode": "ambient"})
    stage.start("--istio-labels")
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        assert stage.pod("b") == {}
        stage.add_pod("b", stage.net.b, labels={"istio.io/dataplane-mode": "none", "culvert.io/mesh": "enabled"})
        stage.reaches("b", "captured")
        stage.stop()
        stage.start()  # without the setting the label is nobody's, and what was enrolled by it is let go
        stage.reaches("a", "")
        assert stage.pod("b")["captured"]


def test_pods_are_not_reached_past_a_ztunnel_that_stays_away(stage: AgentStage) -> None:
    enrol_a(stage)
    stage.start("--fallback-s", "1")
    plane, cookie = stage.plane, stage.net.a.cookie
    with ZtunnelStub(stage.runtime, plane):
        stage.reaches("a", "captured")
        plane.set_fallback(cookie, True)
        time.sleep(1.5)
        assert plane.fallback(cookie)
    assert plane.fallback(cookie)  # for as long as a restart takes
    until(lambda: not plane.fallback(cookie), "the bit is cleared", 5)
    assert "1 pods refuse plain connections" in stage.log
    with ZtunnelStub(stage.runtime, plane):
        stage.reaches("a", "captured")
        plane.set_fallback(cookie, True)
        time.sleep(1.5)
        assert plane.fallback(cookie)
