"""What `lab up`, `apply` and `label` have said is done is known everywhere: no first connection fails.

Six pods on two nodes, four of them in the mesh under STRICT, each with a service. The moment a command returns, every
pod that may connects to every service by name, all at once: a node that has not heard of a capture would dial plain
text, which STRICT refuses; one that has not heard of an endpoint would have nobody to dial.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.node import lab_stage, mesh_stage
from tests.node.lab_stage import culvert, name, start
from tests.support.machine import alone

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),  # five labs, one after the other, on a busy machine
    pytest.mark.skipif(os.geteuid() != 0, reason="attaches programs: needs root"),
]

ROUNDS = 5
MESHED = {"a": "node-a", "b": "node-b", "c": "node-a", "d": "node-b"}
OUTSIDE = {"e": "node-a", "f": "node-b"}


def objects() -> list[dict]:
    found = [namespace("in", {"culvert.io/mesh": "enabled"}), namespace("out", {}), strict_in("in")]
    for space, pods in (("in", MESHED), ("out", OUTSIDE)):
        for pod, node in pods.items():
            found += [server(space, pod, node), service(space, pod)]
    return found


def namespace(own: str, labels: dict) -> dict:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": own, "labels": labels}}


def strict_in(space: str) -> dict:
    metadata = {"name": "strict", "namespace": space}
    spec = {"mtls": {"mode": "STRICT"}}
    return {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata, "spec": spec}


def server(space: str, pod: str, node: str) -> dict:
    command = ["python3", "-m", "http.server", "80"]
    container = {"name": "web", "command": command, "workingDir": "/usr/share/doc",
                 "readinessProbe": {"tcpSocket": {"port": 80}}}  # fmt: skip
    metadata = {"name": pod, "namespace": space, "labels": {"app": pod}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeName": node, "containers": [container]}}  # fmt: skip


def service(space: str, pod: str) -> dict:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": pod, "namespace": space},
            "spec": {"selector": {"app": pod}, "ports": [{"port": 80}]}}  # fmt: skip


def failed_connections(own: str, sources: list[str], targets: list[str]) -> list[str]:
    """One curl per pair, no retry, all at once per source; what went wrong."""
    script = "for t in %s; do (curl -sS -o /dev/null -m 10 http://$t/ 2>&1 | sed s,^,$t:,) & done; wait"
    words = ["sh", "-c", script % " ".join(targets)]
    running = {
        source: start("lab", "exec", "--lab", own, source, "--", *words, stdout=subprocess.PIPE, text=True)
        for source in sources
    }
    found = []
    for source, process in running.items():
        out, _ = process.communicate(timeout=60)
        found += [f"{source} -> {line}" for line in out.splitlines()]
    return found


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    (tmp_path / "all.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects()}))
    return tmp_path


def test_no_first_connection_fails_after_up(manifests: Path) -> None:
    own = name("first")
    inside, outside = [f"in/{pod}" for pod in MESHED], [f"out/{pod}" for pod in OUTSIDE]
    names_in, names_out = [f"{pod}.in" for pod in MESHED], [f"{pod}.out" for pod in OUTSIDE]
    for _ in range(ROUNDS):
        with alone():
            done = culvert("lab", "up", str(manifests), "--lab", own, timeout=120)
            try:
                assert done.returncode == 0, done.stderr
                assert failed_connections(own, inside, [*names_in, *names_out]) == []
                assert failed_connections(own, outside, names_out) == []
            finally:
                culvert("lab", "down", "--lab", own)


def test_no_first_connection_fails_after_apply_and_label(tmp_path: Path) -> None:
    with mesh_stage.mesh("next", tmp_path) as mesh:
        for round_number in range(ROUNDS):
            pod = f"w{round_number}"
            mesh.apply(server("shop", pod, "node-b"), service("shop", pod))
            assert failed_connections(mesh.lab, ["shop/client", "shop/other"], [f"{pod}.shop"]) == []
        strict = strict_in("shop")
        mesh.apply(strict)
        assert len(failed_connections(mesh.lab, ["legacy/outside"], ["w0.shop"])) == 1
        for _ in range(ROUNDS):
            mesh.label("legacy", "culvert.io/mesh=enabled")
            assert failed_connections(mesh.lab, ["legacy/outside"], ["w0.shop", "w1.shop"]) == []
            mesh.label("legacy", "culvert.io/mesh-")
            assert len(failed_connections(mesh.lab, ["legacy/outside"], ["w0.shop"])) == 1
        mesh.delete("peerauthentication", "shop/strict")
        assert failed_connections(mesh.lab, ["legacy/outside"], ["w0.shop"]) == []


def test_node_that_does_not_hear_is_named_and_the_wait_is_bounded(tmp_path: Path) -> None:
    with mesh_stage.mesh("deaf", tmp_path) as mesh:
        pid = mesh.pid("node-b", "ztunnel")
        os.kill(pid, 19)
        try:
            item = namespace("new", {})
            arguments = ("lab", "apply", "--lab", mesh.lab, "-f", "-", "--timeout", "3")
            service_of_it = service("new", "x")
            done = lab_stage.culvert(*arguments, input=json.dumps(item) + "\n---\n" + json.dumps(service_of_it))
        finally:
            os.kill(pid, 18)
        assert done.returncode == 1
        assert "node node-b: has not taken what was announced last" in done.stderr
        again = lab_stage.culvert("lab", "apply", "--lab", mesh.lab, "-f", "-", input=json.dumps(item))
        assert (again.returncode, again.stderr) == (0, "")
