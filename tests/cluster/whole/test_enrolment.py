"""Pods enter and leave while they run; pods that start do so captured, or not at all."""

import json

import pytest

from tests.cluster.whole.objects import OURS, SLEEP, container, pod
from tests.cluster.whole.stage import ASK, CLIENT, SHOP, SYSTEM, WEB, Whole
from tests.cluster.whole.traffic import steady

pytestmark = [pytest.mark.root, pytest.mark.slow]

BOTH = ("web", CLIENT)


def test_labels_take_pods_out_and_in_without_a_restart_or_a_failed_request(mesh: Whole) -> None:
    before = {name: mesh.pod(name) for name in BOTH}

    def captures(wanted: str) -> bool:
        return {mesh.capture(name) for name in BOTH} == {wanted}

    with steady(mesh) as traffic:
        assert not mesh.culvert("unenrol", SHOP).returncode
        assert "enabled" not in {mesh.capture(name) for name in BOTH}
        assert mesh.status_of(WEB) == "200"
        assert not mesh.culvert("enrol", SHOP).returncode
        assert captures("enabled")
        mesh.cluster.kubectl("label", "namespace", SHOP, "culvert.io/mesh-")
        mesh.until("both are out", lambda: captures(""))
        mesh.cluster.kubectl("label", "namespace", SHOP, "culvert.io/mesh=enabled")
        mesh.until("both are in again", lambda: captures("enabled"))
        traffic.go_on()
        traffic.stop()
    assert traffic.bad == []
    assert traffic.good > 100
    for name, old in before.items():
        new = mesh.pod(name)
        assert new["metadata"]["uid"] == old["metadata"]["uid"]
        for was, now in zip(old["status"]["containerStatuses"], new["status"]["containerStatuses"], strict=True):
            assert (now["containerID"], now["restartCount"]) == (was["containerID"], 0)


def test_pods_do_not_start_without_an_agent_and_start_once_it_is_back(mesh: Whole) -> None:
    """One that stays, and a Job whose init container is the first process of its pod and talks over the mesh."""
    node = mesh.place.nodes[1].name
    nowhere = {"spec": {"template": {"spec": {"nodeSelector": {"culvert.test/none": "true"}}}}}
    patch = ["patch", "daemonset", "-n", SYSTEM, "culvert-node", "-p"]
    mesh.cluster.kubectl(*patch, json.dumps(nowhere))
    mesh.until("the agents' end", lambda: not mesh.node_pods())
    mesh.cluster.apply([pod("late", node, container("python", SLEEP)), job(node)])
    complaint = "Culvert's node agent does not answer"
    mesh.until("the reason why it does not start", lambda: complaint in mesh.warnings("late"))
    assert mesh.pod("late")["status"]["phase"] == "Pending"
    assert not mesh.is_ready("late")
    nowhere["spec"]["template"]["spec"]["nodeSelector"]["culvert.test/none"] = None  # type: ignore[assignment]
    mesh.cluster.kubectl(*patch, json.dumps(nowhere))
    mesh.ready("late")
    assert mesh.capture("late") == "enabled"
    mesh.cluster.kubectl("wait", "-n", SHOP, "job/fetch", "--for=condition=Complete", "--timeout=120s")
    mesh.rolled_out("daemonset/culvert-node")
    mesh.until("everything as before", lambda: mesh.status_of(WEB) == mesh.status_of(WEB, "late") == "200")


def test_a_process_that_wants_a_port_of_the_mesh_has_an_event_that_says_so(mesh: Whole) -> None:
    wants = "import socket, time\ntry: socket.create_server(('', 15006))\nfinally: time.sleep(1e6)"
    taker = pod("taker", mesh.place.nodes[0].name, container("python", ["python3", "-c", wants]))
    with mesh.applied(taker):
        mesh.until("the event", lambda: "was refused TCP port 15006" in mesh.warnings("taker"))
        assert mesh.capture("taker") == "enabled"
        assert "15006" in mesh.culvert("status").stdout


def job(node: str) -> dict[str, object]:
    fetch = ["python3", "-c", ASK.replace("print(type", "sys.exit(type"), WEB]
    containers = [container("app", fetch, OURS)]
    spec = pod("fetch", node, *containers, initContainers=[container("first", fetch)], restartPolicy="Never")["spec"]
    metadata = {"name": "fetch", "namespace": SHOP}
    spec = {"backoffLimit": 0, "template": {"spec": spec}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
