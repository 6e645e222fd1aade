"""The same with Helm: `helm install`, pods in the mesh, and a `helm uninstall` that is all it takes."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpf.paths import BPFFS, RUNTIME, escape
from cli.install.chart import Chart
from tests.cluster.kube import binaries
from tests.cluster.kube.processes import in_namespace
from tests.cluster.whole import kernel
from tests.cluster.whole.objects import SLEEP, container, pod
from tests.cluster.whole.stage import SYSTEM, Whole
from tests.cluster.whole.traffic import steady

pytestmark = [pytest.mark.root, pytest.mark.slow]

NAMESPACE = "crate"
ACCOUNT = "keeper"


def helm(whole: Whole, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Helm where it reaches the API server; what it keeps for itself lies in a folder."""
    argv = [
        str(binaries.find("helm", "helm")),
        *words,
        "--namespace",
        SYSTEM,
        "--kubeconfig",
        str(whole.place.kubeconfig),
    ]
    homes = {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    return in_namespace(whole.place.netns, argv, capture_output=True, env={**os.environ, **homes})


def test_helm_alone_takes_out_what_helm_has_put_in(whole: Whole, links_before: set[int], tmp_path: Path) -> None:
    settings = [*whole.install_settings, "--set", "imagePullPolicy=Never"]
    chart = [str(Chart().folder), "--create-namespace", "--wait", "--timeout", "240s"]
    done = helm(whole, tmp_path, "install", "culvert", *chart, *settings)
    assert not done.returncode, done.stderr
    server, client = whole.place.nodes
    whole.cluster.apply([space(), account(), *pods(server.name, client.name)])
    for name in ("server", "client"):
        whole.ready(name, NAMESPACE)
        assert whole.capture(name, NAMESPACE) == "enabled"
    url = f"http://{whole.pod('server', NAMESPACE)['status']['podIP']}:8080/"
    assert kernel.links() - links_before, "the programs are seen, were they left"
    before = containers(whole)

    with steady(whole, url, "client", NAMESPACE) as traffic:
        traffic.go_on()
        done = helm(whole, tmp_path, "uninstall", "culvert")
        assert not done.returncode, done.stdout + done.stderr
        traffic.go_on()
        traffic.stop()
    assert traffic.bad == []

    for node in whole.place.nodes:
        assert not (BPFFS / "culvert" / escape(node.name)).exists()
        assert not (RUNTIME / node.name).exists()
        assert not list(node.cni_plugins.glob("culvert*"))
    assert not any("culvert" in plugin["type"] for one in whole.conflists() for plugin in one["plugins"])
    whole.until("the end of our links", lambda: not kernel.links() - links_before, 5)
    assert containers(whole) == before, "no application was restarted"
    whole.cluster.apply([new_pod(client.name)])
    whole.ready("new", NAMESPACE)
    assert whole.status_of(url, "new", NAMESPACE) == "200"
    kinds = "job,serviceaccount,clusterrole,clusterrolebinding,role,rolebinding,daemonset,deployment"
    assert "culvert-" not in whole.cluster.kubectl("get", kinds, "-A", "-o", "name")
    whole.cluster.kubectl("get", "secret", "-n", SYSTEM, "culvert-ca")  # an installation that follows goes on under it
    done = whole.culvert("uninstall")
    assert not done.returncode, done.stdout + done.stderr
    assert "secrets culvert-system/culvert-ca" in done.stdout


def containers(whole: Whole) -> list[str]:
    """Which run; one that was restarted is another."""
    states = [whole.pod(name, NAMESPACE)["status"]["containerStatuses"] for name in ("server", "client")]
    return [state["containerID"] for found in states for state in found]


def space() -> dict[str, object]:
    labels = {"culvert.io/mesh": "enabled"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def account() -> dict[str, object]:
    """Not `default`: Kubernetes makes that one itself, a moment after the namespace."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}}


def pods(server: str, client: str) -> list[dict[str, object]]:
    serve = container("python", ["python3", "-m", "http.server", "8080"])
    found = [pod("server", server, serve), pod("client", client, container("python", SLEEP))]
    return [_placed(one) for one in found]


def new_pod(node: str) -> dict[str, object]:
    return _placed(pod("new", node, container("python", SLEEP)))


def _placed(found: dict[str, Any]) -> dict[str, Any]:
    metadata, spec = found["metadata"], found["spec"]
    return {
        **found,
        "metadata": {**metadata, "namespace": NAMESPACE},
        "spec": {**spec, "serviceAccountName": ACCOUNT},
    }
