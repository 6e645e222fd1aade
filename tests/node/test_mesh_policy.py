"""AuthorizationPolicy and PeerAuthentication on running connections. Topology: see mesh_stage.py."""

import time
from collections.abc import Iterator

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import Mesh
from tests.node.policies import REFUSED, from_account, outcome, policy, strict
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("policy", tmp_path_factory.mktemp("policy")) as running:
        yield running


def becomes(mesh: Mesh, pod: str, wanted: tuple[str, ...], port: int = 7001) -> None:
    eventually(lambda: outcome(mesh, pod, port) in wanted)


def test_one_account_passes_and_another_is_refused_by_name(mesh: Mesh) -> None:
    with mesh.applied(policy("only-client", **{"from": from_account("client")})):
        becomes(mesh, "shop/other", REFUSED)
        assert outcome(mesh, "shop/client") == "answered"
        assert outcome(mesh, "legacy/outside") in REFUSED
        other = mesh.ips("shop/other")[0]
        line = mesh.logged("node-b", src__identity="spiffe://cluster.local/ns/shop/sa/other", reason="policy_denied")
        assert line["policy"] == "shop/only-client"
        assert line["src.addr"].startswith(f"{other}:")
        seen = mesh.logged("node-a", src__workload="other", reason="peer_denied")
        assert "401" in seen["error"]
    becomes(mesh, "shop/other", ("answered",))


def test_a_policy_closes_what_it_now_forbids_and_nothing_else(mesh: Mesh) -> None:
    web = mesh.ips("shop/web")[0]
    with mesh.staying("shop/other", web, 7001, 6) as other, mesh.staying("shop/client", web, 7001, 3) as client:
        time.sleep(0.5)
        with mesh.applied(policy("only-client", **{"from": from_account("client")})):
            ended = other()
            assert ended["end"] in ("ConnectionResetError", "closed")
            assert ended["after"] < 5
            assert ended["count"] > 5
            assert client()["end"] == "done"
            line = mesh.logged("node-b", src__workload="other", reason="policy_changed")
            assert line["policy"] == "shop/only-client"


def test_deny_wins_and_ports_count(mesh: Mesh) -> None:
    to_port = [{"operation": {"ports": ["7002"]}}]
    with mesh.applied(policy("no-mail", "DENY", to=to_port), policy("all", **{"from": from_account("client")})):
        becomes(mesh, "shop/client", REFUSED, 7002)
        assert outcome(mesh, "shop/client", 7001) == "answered"


def test_strict_refuses_who_has_no_identity_and_lets_the_nodes_probe_pass(mesh: Mesh) -> None:
    web = mesh.ips("shop/web")
    probe = ("curl", "-s", "-m", "3", "-o", "/dev/null", "--http0.9", "-w", "%{exitcode}")
    assert outcome(mesh, "legacy/outside") == "answered"
    assert mesh.run("node/node-b", *probe, f"http://{web[0]}:7002/").stdout == "0"
    with mesh.applied(strict()):
        becomes(mesh, "legacy/outside", REFUSED)
        assert outcome(mesh, "legacy/outside", host=web[1]) in REFUSED
        assert outcome(mesh, "shop/client") == "answered"
        for address in (web[0], f"[{web[1]}]"):
            assert mesh.run("node/node-b", *probe, f"http://{address}:7002/").stdout == "0"
        line = mesh.logged("node-b", src__workload="outside", reason="policy_denied")
        assert "strict" in line["policy"]
    becomes(mesh, "legacy/outside", ("answered",))


def test_masqueraded_node_port_traffic_is_no_probe(mesh: Mesh) -> None:
    service = next(s for s in mesh.status()["services"] if s["name"] == "web")
    node_port = next(port["node_port"] for port in service["ports"] if port["port"] == 7002)
    node_b = next(node for node in mesh.status()["nodes"] if node["name"] == "node-b")["ips"][0]
    assert outcome(mesh, "legacy/outside", node_port, node_b) == "answered"
    with mesh.applied(strict()):
        eventually(lambda: outcome(mesh, "legacy/outside", node_port, node_b) in REFUSED)


def test_a_port_level_exception_to_strict_holds(mesh: Mesh) -> None:
    exception = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "mtls": {"mode": "STRICT"},
            "portLevelMtls": {"7002": {"mode": "PERMISSIVE"}},
        },
    }
    with mesh.applied(exception):
        becomes(mesh, "legacy/outside", REFUSED)
        assert outcome(mesh, "legacy/outside", 7002) == "answered"


def test_a_malformed_policy_leaves_the_good_one_in_force(mesh: Mesh) -> None:
    good = policy("only-client", **{"from": from_account("client")})
    with mesh.applied(good):
        becomes(mesh, "shop/other", REFUSED)
        broken = {**good, "spec": {**good["spec"], "rules": "everybody"}}
        with pytest.raises(AssertionError, match=r"refused: AuthorizationPolicy shop/only-client: spec\.rules"):
            mesh.apply(broken)
        time.sleep(0.5)
        assert outcome(mesh, "shop/other") in REFUSED
        assert outcome(mesh, "shop/client") == "answered"
        log = mesh.command("lab", "logs", "controller").stdout
        assert "shop/only-client" in log
        assert "rules" in log
