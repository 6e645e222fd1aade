"""Parts of the mesh die, hang or are fed garbage. Topology: see mesh_stage.py."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.node import lab_stage, mesh_stage
from tests.node.mesh_stage import Mesh
from tests.node.policies import REFUSED
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("faults", tmp_path_factory.mktemp("faults")) as running:
        yield running


def test_ztunnel_killed_refuses_at_once_sends_nothing_in_clear_and_comes_back(mesh: Mesh, tmp_path: Path) -> None:
    web = mesh.ips("shop/web")[0]
    capture = tmp_path / "kill.pcap"
    tcpdump = mesh.start(
        "node/node-b", "tcpdump", "-i", "eth0", "--immediate-mode", "-U", "-w", str(capture), f"host {web} and tcp"
    )
    eventually(capture.exists)
    watcher = mesh.watch("shop/client", web, 4)
    plain = mesh.watch("legacy/outside", mesh.ips("legacy/server")[0], 4)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "start\n"
    time.sleep(1)
    killed = mesh.pid("node-a", "ztunnel")
    os.kill(killed, signal.SIGKILL)
    seen = json.loads(watcher.communicate(timeout=20)[0].splitlines()[-1])
    outside = json.loads(plain.communicate(timeout=20)[0].splitlines()[-1])
    tcpdump.terminate()
    tcpdump.communicate(timeout=10)
    failures = [entry for entry in seen if not entry[1]]
    assert failures, "some connections fell into the gap"
    assert max(entry[2] for entry in failures) < 0.5, "refused at once, not by a timeout"
    recovered = max(entry[0] for entry in failures) - min(entry[0] for entry in failures)
    assert seen[-1][1], "it works again"
    assert recovered < 1.5
    assert all(entry[1] for entry in outside), "pods outside of the mesh notice nothing"
    assert mesh.pid("node-a", "ztunnel") != killed
    ports = subprocess.run(
        ["tshark", "-r", str(capture), "-T", "fields", "-e", "tcp.dstport", "-e", "tcp.srcport"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    assert all("15008" in line for line in ports if line), "nothing but HBONE crossed the link"


def test_a_service_dialled_while_ztunnel_is_away_is_named_in_the_failures(mesh: Mesh) -> None:
    watcher = mesh.watch("shop/client", "web", 3)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "start\n"
    os.kill(mesh.pid("node-a", "ztunnel"), signal.SIGKILL)
    seen = json.loads(watcher.communicate(timeout=20)[0].splitlines()[-1])
    assert not all(entry[1] for entry in seen), "some connections fell into the gap"
    edge = {"source_pod": "client", "destination_service": "web.shop.svc.cluster.local", "destination_pod": "unknown"}
    eventually(lambda: mesh.metrics("node-a", "culvert_flow_connections_failed_total", **edge) > 0)


def test_the_agent_killed_changes_nothing_for_connections(mesh: Mesh) -> None:
    with mesh.staying("shop/client", "web", 7001, 3) as ended:
        os.kill(mesh.pid("node-a", "agent"), signal.SIGKILL)
        assert mesh.client("shop/client", "many", "web", 7001, "100")["failed"] == 0
        assert ended()["end"] == "done"
    eventually(lambda: mesh.pod("shop/client")["mesh"]["state"] == "captured", 10)


def test_without_a_controller_what_is_known_goes_on(mesh: Mesh) -> None:
    mesh.command("lab", "restart", "controller", "--signal", "STOP")
    try:
        assert mesh.client("shop/client", "many", "web", 7001, "50")["failed"] == 0
        assert mesh.client("shop/other", "many", "web", 7001, "5")["failed"] == 0
    finally:
        mesh.command("lab", "restart", "controller", "--signal", "CONT")


@pytest.mark.parametrize(
    "payload", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000, os.urandom(5000)], ids=["http", "zeros", "noise"]
)
def test_garbage_on_15008_is_closed_and_counted(mesh: Mesh, payload: bytes, tmp_path: Path) -> None:
    before = mesh.metrics("node-b", "culvert_handshakes_failed_total", role="server")
    (tmp_path / "garbage").write_bytes(payload)
    web = mesh.ips("shop/web")[0]
    done = mesh.run("legacy/outside", "timeout", "5", "sh", "-c", f"socat -t3 - TCP:{web}:15008 < {tmp_path}/garbage")
    assert done.returncode != 124, "closed before the client gave up"
    eventually(lambda: mesh.metrics("node-b", "culvert_handshakes_failed_total", role="server") > before)
    assert mesh.client("shop/client", "many", "web", 7001, "5")["failed"] == 0


def test_a_dial_to_15001_is_refused_and_named(mesh: Mesh) -> None:
    assert mesh.client("shop/client", "try_connect", "127.0.0.1", 15001)["outcome"] in REFUSED
    eventually(lambda: mesh.metrics("node-a", "culvert_refused_total", reason="no_note") >= 1)


def test_two_thousand_idle_connections_are_held(mesh: Mesh) -> None:
    code = (
        "import resource,socket,time;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000));"
        "s=[socket.create_connection(('web',7001)) for _ in range(2000)];"
        "[x.recv(200) for x in s]; print('open', flush=True); time.sleep(4);"
        "[x.sendall(b'x') for x in s]; print(sum(x.recv(1)==b'x' for x in s), flush=True)"
    )
    idle = mesh.start("shop/client", "python3", "-c", code)
    try:
        assert idle.stdout is not None
        assert idle.stdout.readline() == "open\n"
        assert mesh.client("shop/other", "many", "web", 7001, "10")["failed"] == 0
        assert mesh.metrics("node-b", "culvert_connections_open") >= 2000
        assert idle.stdout.readline() == "2000\n"
    finally:
        idle.terminate()
        idle.communicate(timeout=10)
    eventually(lambda: mesh.metrics("node-b", "culvert_connections_open") < 10, 10)


def test_bpf_upgrade_under_load_loses_nothing(mesh: Mesh) -> None:
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(mesh.client, "shop/client", "many", "web", 7001, "400")
        done = lab_stage.culvert("node", "upgrade-bpf", "--node", f"{mesh.lab}-node-a")
        assert done.returncode == 0, done.stderr
        assert load.result()["failed"] == 0


def test_way_past_an_absent_ztunnel_is_closed_after_a_while_and_open_again_with_the_next(mesh: Mesh) -> None:
    """Whoever is away cannot hear of a policy: what it said last holds for some seconds only.

    The supervisor is stopped meanwhile, so that nobody starts ztunnel again.
    """
    web, supervisor = mesh.ips("shop/web")[0], mesh.status()["supervisor"]
    eventually(lambda: passes(mesh, "legacy/outside", web))
    for _ in range(2):  # the second time shows that the next ztunnel has said again what it lets pass
        ztunnel = mesh.pid("node-b", "ztunnel")
        os.kill(supervisor, signal.SIGSTOP)
        try:
            os.kill(ztunnel, signal.SIGKILL)
            eventually(lambda gone=ztunnel: not Path(f"/proc/{gone}/ns/net").exists())
            assert passes(mesh, "legacy/outside", web)
            eventually(lambda: not passes(mesh, "legacy/outside", web), 10)
        finally:
            os.kill(supervisor, signal.SIGCONT)
        eventually(lambda: passes(mesh, "legacy/outside", web), 20)


def passes(mesh: Mesh, pod: str, address: str) -> bool:
    script = "import socket, sys; socket.create_connection((sys.argv[1], 7001), 3).recv(9) or sys.exit(1)"
    return mesh.run(pod, "python3", "-c", script, address).returncode == 0


def test_nobody_but_the_node_itself_reaches_what_shows_or_changes_its_configuration(mesh: Mesh) -> None:
    nodes = {item["name"]: item["ips"] for item in mesh.status()["nodes"]}
    targets = [(ip, port) for ips in nodes.values() for ip in ips for port in (15000, 15022)]
    targets += [("172.30.0.1", 15016), ("fd00:30::1", 15016)]
    for source in ("shop/client", "legacy/outside", "legacy/server", "node/node-a"):
        open_ones = [target for target in targets if reads(mesh, source, *target)]
        assert open_ones == [], f"{source} reaches them"
    for ip in nodes["node-b"]:  # a kubelet's and a scraper's
        assert reads(mesh, "legacy/outside", ip, 15020)
        assert reads(mesh, "legacy/outside", ip, 15021)
    assert reads(mesh, "node/node-b", "127.0.0.1", 15000)


def reads(mesh: Mesh, source: str, address: str, port: int) -> bool:
    """Whether an HTTP request there is answered at all."""
    host = f"[{address}]" if ":" in address else address
    done = mesh.run(
        source, "curl", "-gsS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}:{port}/"
    )
    return done.stdout not in ("", "000")
