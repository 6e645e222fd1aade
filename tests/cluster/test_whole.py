"""Culvert on a whole Kubernetes: installed with one command, pods carried by it, and taken out without a trace.

The tests stand in the order in which they run: one cluster, one installation, and its removal at the end.
"""

import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.paths import BPFFS, RUNTIME, escape
from tests.cluster.conftest import refuse
from tests.cluster.kube import binaries
from tests.cluster.whole import Whole
from tests.support.machine import alone

pytestmark = pytest.mark.timeout(600)

SHOP, CLIENT, WEB = "shop", "client", "http://web.shop/"
SLEEP = ["/bin/sleep", "infinity"]

STEADY = """
import sys, time, urllib.request as u
bad, done, until = [], 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    try:
        u.urlopen("http://web.shop/", timeout=10).read()
    except OSError as error:
        bad.append(f"{time.strftime('%X')} {error!r}")
    done += 1
    time.sleep(0.02)
print(done, *bad, sep="\\n")
"""


@pytest.fixture(scope="module")
def whole() -> Iterator[Whole]:
    if os.geteuid() != 0:
        refuse("a cluster needs root, for namespaces and cgroups")
    try:
        made = Whole()
    except binaries.Missing as missing:
        refuse("; ".join(missing.lines))
    with alone(), made:
        yield made


@pytest.fixture(scope="module")
def mesh(whole):
    """The cluster with Culvert in it, two pods in the mesh."""
    done = whole.culvert("install", *whole.install_settings, "--timeout", "240")
    assert not done.returncode, done.stderr
    whole.namespace(SHOP, **{"culvert.io/mesh": "enabled"})
    whole.serve(SHOP, "web", 0)
    whole.run(SHOP, CLIENT, 1, SLEEP)
    return whole


def test_a_cluster_without_an_installation_is_found_fit_for_one(whole):
    done = whole.culvert("check", "--pre")
    assert not done.returncode, done.stdout


def test_after_one_command_nothing_is_missing(mesh):
    done = mesh.culvert("check")
    assert not done.returncode, done.stdout
    assert not mesh.culvert("status").returncode


def test_a_second_installation_changes_nothing(mesh):
    before = mesh.cluster.get("daemonset", "-n", "culvert-system", "culvert-node")["metadata"]["generation"]
    assert not mesh.culvert("install", *mesh.install_settings).returncode
    after = mesh.cluster.get("daemonset", "-n", "culvert-system", "culvert-node")["metadata"]["generation"]
    assert before == after


def test_pods_start_captured_and_reach_each_other_over_mutual_tls(mesh):
    assert [mesh.capture(SHOP, pod) for pod in ("web", CLIENT)] == ["enabled", "enabled"]
    assert mesh.status_of(SHOP, CLIENT, WEB) == "200"
    logs = mesh.cluster.kubectl(
        "logs", "-n", "culvert-system", "-l", "app.kubernetes.io/name=culvert-node", "-c", "ztunnel"
    )
    assert "spiffe://cluster.local/ns/shop/sa/default" in logs
    done = mesh.culvert("explain", "shop/client", "web.shop")
    assert "hbone" in done.stdout and not done.returncode, done.stderr


def test_a_policy_is_tried_before_and_enforced_after_it_is_applied(mesh, tmp_path):
    mesh.status_of(SHOP, CLIENT, WEB)
    policy = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
    policy |= {"metadata": {"name": "nobody", "namespace": SHOP}, "spec": {"action": "DENY", "rules": [{}]}}
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(policy))
    done = mesh.culvert("policy", "test", str(path))
    assert done.returncode == 1 and "shop/web:8080" in done.stdout, done.stderr
    assert mesh.status_of(SHOP, CLIENT, WEB) == "200"
    mesh.cluster.apply([policy])
    mesh.until("the policy", lambda: mesh.status_of(SHOP, CLIENT, WEB) != "200")
    mesh.cluster.kubectl("delete", "authorizationpolicy", "-n", SHOP, "nobody")
    mesh.until("its end", lambda: mesh.status_of(SHOP, CLIENT, WEB) == "200")


def test_pods_leave_and_enter_without_being_restarted(mesh):
    before = mesh.cluster.get("pod", "-n", SHOP, "web")
    assert not mesh.culvert("unenrol", SHOP).returncode
    assert mesh.capture(SHOP, "web") != "enabled"
    assert mesh.status_of(SHOP, CLIENT, WEB) == "200"
    assert not mesh.culvert("enrol", SHOP).returncode
    assert mesh.capture(SHOP, "web") == "enabled"
    after = mesh.cluster.get("pod", "-n", SHOP, "web")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_job_with_an_init_container_works_and_ends(mesh):
    fetch = ["/opt/culvert/bin/python", "-c", f"import urllib.request as u; u.urlopen({WEB!r}, timeout=10)"]
    spec = mesh.pod(SHOP, "job", 1, fetch)["spec"]
    first = {**spec["containers"][0], "name": "first"}
    spec |= {"initContainers": [first], "restartPolicy": "Never"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "fetch", "namespace": SHOP}}
    mesh.cluster.apply([{**job, "spec": {"backoffLimit": 0, "template": {"spec": spec}}}])
    mesh.cluster.kubectl("wait", "-n", SHOP, "job/fetch", "--for=condition=Complete", "--timeout=90s")


def test_a_pod_does_not_start_without_an_agent_and_starts_once_it_is_back(mesh):
    nowhere = {"spec": {"template": {"spec": {"nodeSelector": {"culvert.test/none": "true"}}}}}
    patch = ["patch", "daemonset", "-n", "culvert-system", "culvert-node", "-p"]
    mesh.cluster.kubectl(*patch, json.dumps(nowhere))
    mesh.until("the agents' end", lambda: not node_pods(mesh))
    mesh.cluster.apply([mesh.pod(SHOP, "late", 1, SLEEP)])
    mesh.until("the reason why it does not start", lambda: "culvert" in warnings(mesh, "late"))
    assert mesh.cluster.get("pod", "-n", SHOP, "late")["status"]["phase"] == "Pending"
    nowhere["spec"]["template"]["spec"]["nodeSelector"]["culvert.test/none"] = None
    mesh.cluster.kubectl(*patch, json.dumps(nowhere))
    mesh.cluster.kubectl("wait", "-n", SHOP, "pod/late", "--for=condition=Ready", "--timeout=120s")
    assert mesh.capture(SHOP, "late") == "enabled"
    mesh.cluster.kubectl("rollout", "status", "-n", "culvert-system", "daemonset/culvert-node", "--timeout=120s")
    mesh.until("everything as before", lambda: mesh.status_of(SHOP, CLIENT, WEB) == "200")


def node_pods(mesh):
    return mesh.cluster.get("pods", "-n", "culvert-system", "-l", "app.kubernetes.io/name=culvert-node")["items"]


def warnings(mesh, pod):
    found = mesh.cluster.get("events", "-n", SHOP, "--field-selector", f"involvedObject.name={pod},type=Warning")
    return " ".join(event["message"] for event in found["items"])


def test_replacing_every_node_component_fails_no_request(mesh):
    argv = ["exec", "-n", SHOP, CLIENT, "--", "/opt/culvert/bin/python", "-c", STEADY, "60"]
    kubectl = [str(binaries.find("kubernetes", "kubectl")), "--kubeconfig", str(mesh.place.kubeconfig)]
    command = ["nsenter", f"--net={mesh.place.netns}", *kubectl, *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as steady:
        time.sleep(1)
        mesh.cluster.kubectl("rollout", "restart", "-n", "culvert-system", "daemonset/culvert-node")
        mesh.cluster.kubectl("rollout", "status", "-n", "culvert-system", "daemonset/culvert-node", "--timeout=180s")
        done, *bad = steady.communicate(timeout=120)[0].split("\n")[:-1]
    assert int(done) > 100
    assert bad == []


def test_a_sysdump_has_every_node_and_no_secret(mesh, tmp_path):
    done = mesh.culvert("sysdump", "-o", str(tmp_path / "dump.tar.gz"))
    assert not done.returncode, done.stderr
    with tarfile.open(tmp_path / "dump.tar.gz") as archive:
        names = archive.getnames()
        text = b"".join(archive.extractfile(one).read() for one in archive.getmembers())
    for node in mesh.place.nodes:
        assert f"culvert-sysdump/nodes/{node.name}/ztunnel-config.json" in names
    assert b"PRIVATE KEY" not in text


def test_nothing_is_left_after_it_was_taken_out(mesh):
    done = mesh.culvert("uninstall")
    assert not done.returncode, done.stdout + done.stderr
    for node in mesh.place.nodes:
        assert not (BPFFS / "culvert" / escape(node.name)).exists()
        assert not (RUNTIME / node.name).exists()
        assert not list(Path(node.cni_plugins).glob("culvert*"))
    assert not any("culvert" in plugin["type"] for one in mesh.conflists() for plugin in one["plugins"])
    text = mesh.cluster.kubectl("get", "crd,ns,clusterrole,clusterrolebinding", "-o", "name")
    assert "culvert" not in text and "istio" not in text
    metadata = [one["metadata"] for kind in ("pods", "namespaces") for one in mesh.cluster.get(kind, "-A")["items"]]
    marks = [mark for one in metadata for mark in (*one.get("labels", ()), *one.get("annotations", ()))]
    assert marks and not [mark for mark in marks if "culvert" in mark]
    assert mesh.status_of(SHOP, CLIENT, WEB) == "200"
