"""The guard in the agent's hands: on, off, over a restart, on links that come and go (topology: agent_stage.py)."""

import json
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.bpf.packets import tcp
from tests.bpf.topology import sh
from tests.node.agent_stage import AgentStage, ZtunnelStub, until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]

SYN_PORT = 7000


@pytest.fixture
def stage(machine: None) -> Iterator[AgentStage]:
    with AgentStage() as made:
        made.add_pod("a", made.net.a)
        made.enable()
        yield made


def leaves(stage: AgentStage) -> bool:
    """Whether a SYN of a raw socket gets out of pod a."""
    net = stage.net
    with net.out.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_TCP) as tap:
        with net.a.socket(kind=socket.SOCK_RAW, protocol=socket.IPPROTO_TCP) as sock:
            sock.sendto(tcp(net.a.ip4, net.out.ip4, dport=SYN_PORT), (net.out.ip4, 0))
        tap.settimeout(0.5)
        try:
            return tap.recv(2048)[22:24] == SYN_PORT.to_bytes(2)
        except TimeoutError:
            return False


def test_a_captured_pod_is_guarded_until_it_drains(stage: AgentStage) -> None:
    stage.start()
    assert leaves(stage), "it is not captured yet"
    with ZtunnelStub(stage.runtime, stage.plane):
        assert stage.reaches("a", "captured")["unguarded"] == ""
        assert not leaves(stage)
        document = json.loads(stage.get("/status"))
        assert document["guard"]["on"]
        assert document["guard"]["dropped"]["stranger"] >= 1
        assert "culvert_agent_pods_guarded 1" in stage.get("/metrics").splitlines()
        stage.label(shop={})
        stage.reaches("a", "")
        assert leaves(stage)


def test_the_guard_outlives_the_agent(stage: AgentStage) -> None:
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        stage.stop(signal.SIGKILL)
        assert not leaves(stage)


def test_an_agent_with_the_guard_off_removes_it_and_says_so(stage: AgentStage) -> None:
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
    stage.stop()
    stage.start("--guard", "off")
    with ZtunnelStub(stage.runtime, stage.plane):
        until(lambda: "off" in stage.pod("a").get("unguarded", ""), "the pod's row says that the guard is off")
        assert leaves(stage)
        document = json.loads(stage.get("/status"))
        assert not document["guard"]["on"]
        assert "not dropped at the source" in document["not_captured"]
        assert "culvert_agent_pods_guarded 0" in stage.get("/metrics").splitlines()


def test_a_link_that_is_made_anew_is_guarded_anew(stage: AgentStage) -> None:
    stage.start("--watch-pins-s", "0.2")
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        sh(f"ip -n {stage.net.a.name} link del eth0")
        until(lambda: "no links" in stage.pod("a")["unguarded"], "the loss is told")
        stage.net.link(stage.net.a)
        until(lambda: stage.pod("a")["unguarded"] == "", "a guard on the new link")
        assert not leaves(stage)


def test_a_pod_without_an_end_on_the_node_is_enrolled_and_says_so(stage: AgentStage) -> None:
    net = stage.net
    sh(f"ip -n {net.a.name} link del eth0")
    sh(f"ip -n {net.out.name} link add va type veth peer name eth0 netns {net.a.name}")
    net.address(net.a)
    stage.start()
    with ZtunnelStub(stage.runtime, stage.plane):
        row = stage.reaches("a", "captured")
        assert "eth0" in row["unguarded"]
        assert "node's network namespace" in row["unguarded"]


def test_a_link_that_a_pod_gets_later_is_guarded_soon(stage: AgentStage) -> None:
    """Also one that it made itself: who is mighty enough reaches the node's namespace from the pod."""
    net = stage.net
    stage.start("--watch-pins-s", "0.2")
    with ZtunnelStub(stage.runtime, stage.plane):
        stage.reaches("a", "captured")
        pins = stage.plane.paths.inbound(net.a.cookie).parent
        assert len(list(pins.glob("guard-*"))) == 1
        sh(f"ip -n {net.node.name} link add vx type veth peer name eth1 netns {net.a.name}")
        until(lambda: len(list(pins.glob("guard-*"))) == 2, "a guard on the second link")
        assert stage.pod("a")["unguarded"] == ""
