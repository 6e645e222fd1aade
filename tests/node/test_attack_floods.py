"""Peers and pods that take more than their share: what it costs the others. Topology: see mesh_stage.py."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import Mesh
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]

# Holds so many connections and says nothing.
HOLD = """
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
held = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) for _ in range(int(sys.argv[3]))]
print("held", flush=True)
time.sleep(60)
"""

# Dials, resets and dials again for so many seconds.
FLOOD = """
import socket, struct, sys, time
end = time.monotonic() + float(sys.argv[3])
print("start", flush=True)
while time.monotonic() < end:
    with socket.socket() as sock:
        sock.settimeout(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            sock.connect((sys.argv[1], int(sys.argv[2])))
        except OSError:
            pass
"""

# The handshake with a pod's HBONE port, as far as a stranger gets.
GREET = """
import socket, ssl, sys
context = ssl._create_unverified_context()
context.set_alpn_protocols(["h2"])
with context.wrap_socket(socket.create_connection((sys.argv[1], 15008), 3)) as sock:
    print(sock.version())
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("floods", tmp_path_factory.mktemp("floods")) as running:
        yield running


@contextmanager
def hostile(mesh: Mesh, pod: str, code: str, *arguments: str) -> Iterator[None]:
    """A program of somebody who means no good, once it has said that it began."""
    process = mesh.start(pod, "python3", "-c", code, *arguments)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=10)


def greeted(mesh: Mesh, pod: str) -> str:
    return str(mesh.run("legacy/outside", "python3", "-c", GREET, mesh.ips(pod)[0]).stdout).strip()


@pytest.mark.parametrize("attacked", ["shop/other", "shop/client"])
def test_silent_strangers_on_one_pods_15008_shut_nobody_out(mesh: Mesh, attacked: str) -> None:
    """Twice as many as ztunnel has handshakes in flight: of another pod, and of the very pod that is greeted."""
    before = mesh.metrics("node-a", "culvert_refused_total", reason="limit_handshakes")
    with hostile(mesh, "legacy/outside", HOLD, mesh.ips(attacked)[0], "15008", "1100"):
        assert mesh.metrics("node-a", "culvert_refused_total", reason="limit_handshakes") > before, "the bound was hit"
        for _ in range(3):
            assert greeted(mesh, "shop/client") == "TLSv1.3"
        assert mesh.client("shop/client", "many", "web", 7001, "20")["failed"] == 0


@pytest.mark.parametrize(("pod", "target", "port"), [("legacy/outside", "shop/web", 15008), ("shop/other", "", 15001)])
def test_a_flood_of_dials_to_a_mesh_port_slows_nobody_down(mesh: Mesh, pod: str, target: str, port: int) -> None:
    address = mesh.ips(target)[0] if target else "127.0.0.1"
    with hostile(mesh, pod, FLOOD, address, str(port), "30"):
        started = time.monotonic()
        assert mesh.client("shop/client", "many", "web", 7001, "200")["failed"] == 0
        assert time.monotonic() - started < 10


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def passing(name: str) -> dict[str, Any]:
    container = {"name": "app", "command": ["sleep", "infinity"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": "node-b", "containers": [container]},
    }


def test_pods_that_come_and_go_leave_nothing_and_disturb_nobody(mesh: Mesh) -> None:
    mesh.client("shop/client", "many", "web", 7001, "5")
    pids = [mesh.pid("node-b", component) for component in ("ztunnel", "agent")]
    before = [descriptors(pid) for pid in pids]
    pods = [passing(f"passing{index}") for index in range(3)]
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(mesh.client, "shop/client", "many", "web", 7001, "600")
        for _ in range(2):
            mesh.apply(*pods)
            for pod in pods:
                mesh.delete("Pod", f"shop/{pod['metadata']['name']}")
        assert load.result()["failed"] == 0
    eventually(lambda: all(descriptors(pid) <= was + 3 for pid, was in zip(pids, before, strict=True)), 10)
    assert [mesh.pid("node-b", component) for component in ("ztunnel", "agent")] == pids


def test_a_ztunnel_that_hangs_loses_nothing_that_was_accepted(mesh: Mesh) -> None:
    """Connections wait in its queue; when it goes on they are served, and no note of theirs is left."""
    pid = mesh.pid("node-a", "ztunnel")
    with mesh.staying("shop/client", "web", 7001, 4) as ended:
        os.kill(pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(mesh.client, "shop/client", "many", "web", 7001, "20")
                time.sleep(2)
                assert not waiting.done()
                os.kill(pid, signal.SIGCONT)
                assert waiting.result()["failed"] == 0
        finally:
            os.kill(pid, signal.SIGCONT)
        assert ended()["end"] == "done"
    assert mesh.pid("node-a", "ztunnel") == pid
