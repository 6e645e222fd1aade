"""Pods of a whole Kubernetes with the mesh on it: how they start, go on while its parts are replaced, and leave.

n1.node: client, and what a test starts          n2.node: web (8080), behind service `web` port 80
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.install.chart import Chart, Release
from tests.cluster.conftest import refuse
from tests.cluster.kube import binaries
from tests.cluster.kube.cluster import Cluster
from tests.cluster.kube.place import Place
from tests.cluster.kube.processes import in_namespace
from tests.support.machine import alone

pytestmark = [pytest.mark.root, pytest.mark.slow]

IMAGE = "localhost/culvert:dev"
NAMES = ("n1.node", "n2.node")
DEADLINE_S = 120.0
# Dials again and again; prints how often it worked, and what became of the rest: when, how long it took, why.
DIAL = """
import json, sys, time, urllib.request
end, good, bad = time.time() + float(sys.argv[1]), 0, []
while time.time() < end:
    began = time.time()
    try:
        urllib.request.urlopen("http://web/etc/hostname", timeout=5).read()
        good += 1
    except OSError as error:
        bad.append([began, round(time.time() - began, 2), str(error)])
    time.sleep(0.02)
print(json.dumps({"good": good, "bad": bad}))
"""
ONCE = "import urllib.request; print(urllib.request.urlopen('http://web.shop/etc/hostname', timeout=20).read())"


def image_file() -> Path:
    """Where `make image` puts it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CULVERT_TEST_IMAGE") or cache / "culvert/image/culvert.tar")


def until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.3)
    return found


def container(*command: str, **more: Any) -> dict[str, Any]:
    return {"name": "app", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": list(command), **more}


def pod(name: str, node: str, *command: str, **spec: Any) -> dict[str, Any]:
    own = {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container(*command)]}
    metadata = {"name": name, "namespace": "shop", "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**own, **spec}}


def topology() -> list[dict[str, Any]]:
    probe = {"httpGet": {"path": "/etc/hostname", "port": 8080}, "periodSeconds": 2, "timeoutSeconds": 5}
    serve = container("python", "-m", "http.server", "8080", readinessProbe=probe)
    labels = {"culvert.io/mesh": "enabled"}
    ports = [{"port": 80, "targetPort": 8080}]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": ports},
        },
        pod("web", NAMES[1], containers=[serve]),
        pod("client", NAMES[0], "sleep", "infinity"),
    ]


class Mesh:
    """A cluster with the mesh installed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def install(self) -> None:
        chart = Chart()
        base = self.cluster.place.state
        sub = [f"cni.binSubPath=$(NODE_NAME)/{self._below('cni_plugins')}"]
        sub += [f"cni.confSubPath=$(NODE_NAME)/{self._below('cni_config')}"]
        values = chart.values((), ["namespace.create=true", f"cni.binDir={base}", f"cni.confDir={base}", *sub])
        self.cluster.apply(chart.definitions())
        self.cluster.apply(chart.objects(values, Release()))
        for name in ("deployment/culvert-controller", "daemonset/culvert-node"):
            self.rolled_out(name)

    def rolled_out(self, name: str) -> None:
        self.cluster.kubectl("rollout", "status", "-n", "culvert-system", name, "--timeout=240s")

    def _below(self, folder: str) -> Path:
        node = self.cluster.place.nodes[0]
        path: Path = getattr(node, folder)
        return path.relative_to(node.state)

    def pod(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get("pod", name, "-n", "shop")
        return found

    def annotation(self, name: str) -> str:
        return str(self.pod(name)["metadata"].get("annotations", {}).get("culvert.io/capture", ""))

    def is_running(self, name: str) -> bool:
        states = self.pod(name)["status"].get("containerStatuses", ())
        return bool(states) and all(state["ready"] for state in states)

    def python(self, name: str, code: str, *arguments: str) -> str:
        return self.cluster.kubectl("exec", "-n", "shop", name, "-c", "app", "--", "python", "-c", code, *arguments)

    @contextmanager
    def dialling(self, seconds: int) -> Iterator[Callable[[], dict[str, Any]]]:
        """Steady traffic beside what the block does; what this yields waits for its end and tells."""
        kubectl = [str(binaries.find("kubernetes", "kubectl")), "--kubeconfig", str(self.cluster.place.kubeconfig)]
        words = ["exec", "-n", "shop", "client", "-c", "app", "--", "python", "-c", DIAL, str(seconds)]
        command = ["nsenter", f"--net={self.cluster.place.netns}", *kubectl, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

            def told() -> dict[str, Any]:
                out, _ = process.communicate(timeout=seconds + 60)
                found: dict[str, Any] = json.loads(out.splitlines()[-1])
                return found

            try:
                yield told
            finally:
                process.kill()

    def pid_of(self, component: str, node: str) -> int:
        return pid_of(f"-m\0{component}\0--node={node}\0")


def pid_of(words: str) -> int:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().decode(errors="replace"):
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError(f"nothing runs as {words!r}")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    if os.geteuid() != 0:
        refuse("a cluster for tests needs root")
    if not image_file().exists():
        refuse(f"{image_file()} is missing: run `make image`")
    try:
        binaries.check_system()
        binaries.check_built("kubernetes", "coredns")
    except binaries.Missing as missing:
        refuse(str(missing))
    with alone():
        cluster = Cluster(Place("node"))
        cluster.up([image_file()])
        try:
            made = Mesh(cluster)
            made.install()
            cluster.apply(topology())
            until(lambda: made.is_running("web") and made.is_running("client"), "web and client run")
            until(lambda: made.annotation("client") == "enabled", "the client is captured")
            yield made
        finally:
            cluster.down()
            for name in NAMES:
                unload = [sys.executable, "-m", "daemonset", "unload", "--key", name]
                subprocess.run(unload, check=False, capture_output=True, timeout=60)
                shutil.rmtree(Path("/run/culvert") / name, ignore_errors=True)


def test_pods_of_two_nodes_speak_hbone_under_their_service_accounts(mesh: Mesh) -> None:
    until(lambda: "web" in mesh.python("client", ONCE), "the first answer")
    logs = mesh.cluster.kubectl(
        "logs", "-n", "culvert-system", "-l", "app.kubernetes.io/name=culvert-node", "-c", "ztunnel", "--tail=500"
    )
    lines = [json.loads(line) for line in logs.splitlines() if '"scope":"access"' in line]
    served = [line for line in lines if line["reason"] == "ok" and line["direction"] == "inbound"]
    assert served and served[-1]["src.identity"] == "spiffe://cluster.local/ns/shop/sa/default"
    assert served[-1]["dst.addr"].endswith(":15008")


def test_while_the_agent_is_away_pods_do_not_start_and_afterwards_they_do(mesh: Mesh) -> None:
    """The Job's init container is the first process of its pod, and talks over the mesh."""
    socket = Path("/run/culvert") / NAMES[0] / "cni.sock"
    away = socket.with_name("away")
    socket.rename(away)
    try:
        once = container("python", "-c", ONCE)
        spec = pod("job", NAMES[0], containers=[once], initContainers=[once | {"name": "init"}], restartPolicy="Never")
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "job", "namespace": "shop"},
            "spec": {"backoffLimit": 0, "template": {"spec": spec["spec"]}},
        }
        mesh.cluster.apply([job, pod("late", NAMES[0], "sleep", "infinity")])
        until(lambda: "Culvert's node agent does not answer" in events(mesh, "late"), "the event of a refused start")
        assert not mesh.is_running("late")
    finally:
        away.rename(socket)
    until(lambda: mesh.is_running("late"), "the pod that was refused")
    assert mesh.annotation("late") == "enabled"
    mesh.cluster.kubectl("wait", "-n", "shop", "--for=condition=complete", "job/job", "--timeout=120s")


def events(mesh: Mesh, name: str) -> str:
    items = mesh.cluster.get("events", "-n", "shop", f"--field-selector=involvedObject.name={name}")["items"]
    return "\n".join(item["message"] for item in items)


def test_a_rolling_restart_fails_no_request(mesh: Mesh) -> None:
    with mesh.dialling(90) as told:
        time.sleep(2)
        mesh.cluster.kubectl("rollout", "restart", "-n", "culvert-system", "daemonset/culvert-node")
        mesh.rolled_out("daemonset/culvert-node")
        found = told()
    assert found["good"] > 200
    assert found["bad"] == []


def test_a_killed_ztunnel_refuses_at_once_and_comes_back(mesh: Mesh) -> None:
    with mesh.dialling(30) as told:
        time.sleep(2)
        os.kill(mesh.pid_of("ztunnel", NAMES[0]), 9)
        found = told()
    assert found["bad"], "some connections fell into the gap"
    assert max(took for _, took, _ in found["bad"]) < 2
    assert "web" in mesh.python("client", ONCE)


def test_labels_take_pods_out_and_in_without_a_restart(mesh: Mesh) -> None:
    before = mesh.pod("web")["status"]["containerStatuses"][0]["containerID"]
    with mesh.dialling(40) as told:
        mesh.cluster.kubectl("label", "namespace", "shop", "culvert.io/mesh-")
        until(lambda: mesh.annotation("web") == mesh.annotation("client") == "", "both are out")
        mesh.cluster.kubectl("label", "namespace", "shop", "culvert.io/mesh=enabled")
        until(lambda: mesh.annotation("web") == mesh.annotation("client") == "enabled", "both are in again")
        found = told()
    assert found["bad"] == []
    assert mesh.pod("web")["status"]["containerStatuses"][0]["containerID"] == before


def test_the_plugin_is_entered_last_and_taken_away_by_the_command(mesh: Mesh) -> None:
    node = mesh.cluster.place.nodes[0]
    (path,) = node.cni_config.glob("*.conflist")
    assert json.loads(path.read_text())["plugins"][-1]["type"] == "culvert-cni"
    command = [sys.executable, "-m", "daemonset", "remove-cni", "--key", NAMES[0]]
    command += ["--cni-conf-dir", str(node.cni_config), "--cni-bin-dir", str(node.cni_plugins)]
    done = in_namespace(node.netns, command, capture_output=True)
    assert "taken out of" in done.stdout, done.stderr
    until(lambda: json.loads(path.read_text())["plugins"][-1]["type"] == "culvert-cni", "the agent's repair", 30)
