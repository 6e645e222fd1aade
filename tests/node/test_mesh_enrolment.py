"""Pods join and leave the mesh while they run. Topology: see mesh_stage.py."""

import time
from collections.abc import Iterator

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import APPS, Mesh
from tests.node.policies import outcome, strict
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("enrol", tmp_path_factory.mktemp("enrol")) as running:
        yield running


def state(mesh: Mesh, pod: str) -> str:
    return str(mesh.pod(pod)["mesh"]["state"])


def is_captured(mesh: Mesh, pod: str) -> bool:
    return state(mesh, pod) == "captured"


def processes(mesh: Mesh) -> dict[str, int]:
    """Each pod's first process."""
    return {f"{pod['namespace']}/{pod['name']}": pod["pid"] for pod in mesh.status()["pods"]}


def test_a_pod_that_left_may_join_again(mesh: Mesh) -> None:
    for _ in range(2):
        mesh.label("shop", "culvert.io/mesh=disabled")
        eventually(lambda: not state(mesh, "shop/web"), 15)
        mesh.label("shop", "culvert.io/mesh=enabled")
        eventually(lambda: is_captured(mesh, "shop/web"), 10)
        eventually(lambda: outcome(mesh, "shop/client") == "answered")


def test_the_label_moves_new_connections_and_leaves_open_ones_alone(mesh: Mesh) -> None:
    server = mesh.ips("legacy/server")[0]
    applications = processes(mesh)
    with mesh.staying("legacy/outside", server, 7001, 7) as open_before:
        mesh.label("legacy", "culvert.io/mesh=enabled")
        eventually(lambda: is_captured(mesh, "legacy/outside") and is_captured(mesh, "legacy/server"), 10)
        mesh.client("legacy/outside", "names", server, 7001)
        line = mesh.logged("node-b", dst__workload="server", direction="inbound")
        assert line["src.identity"] == "spiffe://cluster.local/ns/legacy/sa/outside"
        with mesh.staying("legacy/outside", server, 7001, 8) as open_meshed:
            mesh.label("legacy", "culvert.io/mesh-")
            eventually(lambda: not state(mesh, "legacy/outside"), 15)
            lines = len(mesh.access_log("node-a"))
            seen = mesh.client("legacy/outside", "names", server, 7001)
            assert seen["server"]["peer"][0].removeprefix("::ffff:") == mesh.ips("legacy/outside")[0]
            assert len(mesh.access_log("node-a")) == lines, "the new connection went past ztunnel"
            assert open_before()["end"] == "done"
            assert open_meshed()["end"] == "done"
    assert processes(mesh) == applications, "no application was restarted"


def test_a_connection_from_before_enrolment_ends_when_strict_forbids_it(mesh: Mesh) -> None:
    web = mesh.ips("shop/web")[0]
    mesh.label("shop", "culvert.io/mesh=disabled")
    eventually(lambda: not state(mesh, "shop/web"), 15)
    with mesh.staying("legacy/outside", web, 7001, 10) as earlier:
        mesh.label("shop", "culvert.io/mesh=enabled")
        eventually(lambda: is_captured(mesh, "shop/web"), 10)
        time.sleep(0.5)
        with mesh.applied(strict()):
            ended = earlier()
            assert ended["end"] in ("ConnectionResetError", "closed", "BrokenPipeError")
            assert ended["after"] < 9
            log = mesh.command("lab", "logs", "node/node-b/ztunnel").stdout
            assert "closed a connection from before enrolment" in log


def test_a_pod_that_listens_on_a_mesh_port_is_refused_with_the_reason(mesh: Mesh) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "squatter", "namespace": "legacy", "labels": {"app": "squatter"}},
        "spec": {
            "nodeName": "node-a",
            "containers": [{"name": "app", "command": ["python3", "-m", "http.server", "15008"]}],
        },
    }
    with mesh.applied(pod):
        eventually(lambda: "15008" in mesh.run("legacy/squatter", "ss", "-ltn").stdout)
        labelled = {**pod, "metadata": {**pod["metadata"], "labels": {"culvert.io/mesh": "enabled"}}}
        mesh.apply(labelled)
        eventually(lambda: "15008" in str(mesh.pod("legacy/squatter")), 10)
        assert not is_captured(mesh, "legacy/squatter")


def test_an_enrolled_pod_cannot_take_a_mesh_port(mesh: Mesh) -> None:
    code = "import socket; s = socket.socket(); s.setsockopt(1, 15, 1); s.bind(('0.0.0.0', 15001))"
    done = mesh.run("shop/client", "python3", "-c", code)
    assert done.returncode == 1
    assert "OSError" in done.stderr or "PermissionError" in done.stderr


def test_a_pod_that_comes_and_goes_is_served_and_forgotten(mesh: Mesh) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "guest", "namespace": "shop", "labels": {"app": "guest"}},
        "spec": {
            "nodeName": "node-b",
            "serviceAccountName": "guest",
            "containers": [{"name": "app", "command": ["python3", str(APPS / "server.py")]}],
        },
    }
    for _ in range(3):
        with mesh.applied(pod):
            eventually(lambda: is_captured(mesh, "shop/guest"), 10)
            address = mesh.ips("shop/guest")[0]
            eventually(lambda at=address: outcome(mesh, "shop/client", host=at) == "answered")
        eventually(lambda at=address: outcome(mesh, "shop/client", host=at) not in ("answered",))
    assert outcome(mesh, "shop/client") == "answered"
    eventually(lambda: mesh.metrics("node-b", "workload_manager_active_proxy_count") == 1)
