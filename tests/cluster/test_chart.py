"""What `culvert install` renders by itself is what Helm renders. Needs no cluster."""

import subprocess

import pytest
import yaml

from cli.install.chart import Chart, Release
from tests.cluster.conftest import refuse
from tests.cluster.kube import binaries

CHART = Chart()
VERSION = "1.33.0"

CASES = {
    "defaults": [],
    "gke": ["platform=gke"],
    "openshift": ["platform=openshift", "namespace.create=true", "managedBy=culvert"],
    "openshift with a plugin": ["platform=openshift", "cni.confDir=/c", "node.seLinuxType=super_t"],
    "k3s, paths of one's own": ["platform=k3s", "cni.binDir=/a", "cni.confDir=/b,cni.confSubPath=$(NODE_NAME)/c"],
    "cert-manager": ["ca.source=cert-manager,ca.issuerName=vault,ca.issuerKind=Issuer"],
    "monitors": ["serviceMonitor.enabled=true", "serviceMonitor.labels.release=prom", "serviceMonitor.interval=5s"],
    "one controller": ["controller.replicas=1", "node.drainSeconds=5"],
    "lists": [
        "node.tolerations[0].key=a,node.tolerations[0].operator=Exists",
        "controller.tolerations[0].key=b,controller.tolerations[0].operator=Exists",
        "imagePullSecrets[0].name=pull",
    ],
    "time to uninstall": ["uninstallHook.stepSeconds=200"],
    "more arguments": [
        "controller.extraArgs={--a=b,--c=d e}",
        "node.agent.extraArgs={--x}",
        "node.ztunnel.extraArgs={--y}",
    ],
    "less": ["cni.enabled=false", "networkPolicy.enabled=false", "uninstallHook.enabled=false"],
    "Istio's": ["istioLabels=true", "rootNamespace=istio-system", "auth.tokenAudiences={culvert-ca,istio-ca}"],
    "accounts": [
        "auth.extraNodeAccounts={istio-system/ztunnel,a/b}",
        r"controller.nodeSelector.kubernetes\.io/os=linux",
    ],
    "resources": ["controller.resources.limits.memory=1Gi", "node.agent.resources.requests.cpu=1"],
}

REFUSED = [
    "platform=aks",
    "ca.source=cert-manager",
    "logs.format=xml",
    "auth.tokenAudiences={}",
    "controller.replicas=0",
    "uninstallHook.stepSeconds=0",
]


def helm(assignments, namespace="mesh", *more):
    try:
        program = str(binaries.find("helm", "helm"))
    except binaries.Missing:
        refuse()
    argv = [program, "template", "culvert", str(CHART.folder), "--namespace", namespace, "--kube-version", VERSION]
    argv += more
    argv += [word for text in assignments for word in ("--set", text)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def by_name(documents):
    return sorted(filter(None, documents), key=lambda one: (one["kind"], one["metadata"]["name"]))


@pytest.mark.parametrize("case", CASES)
def test_an_installation_is_the_same_with_helm_and_without(case):
    done = helm(CASES[case])
    assert not done.returncode, done.stderr
    values, release = CHART.values((), CASES[case]), Release("mesh", service="Helm")
    ours = CHART.objects(values, release)
    assert by_name([*ours, *CHART.hooks(values, release)]) == by_name(yaml.safe_load_all(done.stdout))
    assert ours


def test_what_we_install_is_what_helm_installs_and_nothing_that_it_makes_at_an_event():
    done = helm([], "mesh", "--no-hooks")
    assert not done.returncode, done.stderr
    ours = CHART.objects(CHART.values(), Release("mesh", service="Helm"))
    assert by_name(ours) == by_name(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("assignment", ["logs.levl=debug", "controller.replicas=abc", "istioLabels=2", "nodes.x=1"])
def test_helm_refuses_settings_that_are_none_and_values_of_another_type(assignment):
    done = helm([assignment])
    assert done.returncode
    assert assignment.partition("=")[0].split(".")[-1] in done.stderr or "nodes" in done.stderr


@pytest.mark.parametrize("assignment", REFUSED)
def test_helm_refuses_what_we_refuse(assignment):
    done = helm([assignment])
    assert done.returncode
    assert assignment.partition("=")[0].split(".")[0] in done.stderr


def test_the_chart_is_one_that_helm_finds_nothing_wrong_with():
    helm([])
    program = str(binaries.find("helm", "helm"))
    done = subprocess.run(
        [program, "lint", "--strict", str(CHART.folder), "--kube-version", VERSION],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stdout
