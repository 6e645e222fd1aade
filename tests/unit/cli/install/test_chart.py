import re

import pytest

from cli.install.chart import Chart, Release
from cli.install.command import uninstall
from cli.install.manifests import PLATFORMS, manifest, settings
from cli.install.template import SettingsRefused
from controller.config import Config as ControllerConfig
from controller.status.metrics import Metrics
from controller.status.pages import monitoring_routes
from daemonset.config import Config as AgentConfig
from mesh.enrolment import MESH_LABEL
from ztunnel.config import Config as ZtunnelConfig

CHART = Chart()


def objects(*assignments, namespace="culvert-system"):
    return CHART.objects(CHART.values((), assignments), Release(namespace))


def hooks(*assignments, namespace="culvert-system"):
    return CHART.hooks(CHART.values((), assignments), Release(namespace))


def job(*assignments, **more):
    (found,) = [it for it in hooks(*assignments, **more) if it["kind"] == "Job"]
    return found


def one(kind, name, *assignments, **more):
    (found,) = [it for it in objects(*assignments, **more) if (it["kind"], it["metadata"]["name"]) == (kind, name)]
    return found


def arguments(container):
    """As kubelet passes them on."""
    return [re.sub(r"\$\((\w+)\)", "node-1.example", argument) for argument in container["args"]]


def container(name, *assignments, **more):
    kind, owner = ("Deployment", "culvert-controller") if name == "controller" else ("DaemonSet", "culvert-node")
    pod = one(kind, owner, *assignments, **more)["spec"]["template"]["spec"]
    (found,) = [it for it in pod["containers"] if it["name"] == name]
    return found


def test_every_process_takes_the_settings_that_it_is_given():
    controller = ControllerConfig.load(arguments(container("controller")), {})
    assert (controller.callers.auth, controller.authority.ca, controller.election.elect) == (
        "tokens",
        "kubernetes",
        True,
    )
    agent = AgentConfig.load(arguments(container("agent")), {})
    assert agent.place.node == "node-1.example"
    assert (agent.place.pod_source, agent.enrolment.standby) == ("kubernetes", True)
    assert agent.cluster.cni_exclude == ("culvert-system", "kube-system")
    ztunnel = ZtunnelConfig.load(arguments(container("ztunnel")), {})
    assert ztunnel.place.runtime == agent.place.runtime


def test_a_controller_that_hangs_fails_its_probes():
    """Its port would go on taking connections: that is the kernel's doing."""
    controller = container("controller")
    routes = monitoring_routes(Metrics(), lambda: True)
    for probe in ("readinessProbe", "livenessProbe"):
        assert ("GET", controller[probe]["httpGet"]["path"]) in routes
    config = ControllerConfig.load(arguments(controller), {})
    assert config.serve.metrics_listen.endswith(f":{controller['livenessProbe']['httpGet']['port']}")


@pytest.mark.parametrize(("name", "config"), [("agent", AgentConfig), ("ztunnel", ZtunnelConfig)])
def test_probes_of_a_node_look_at_the_files_that_its_processes_keep(name, config):
    found = container(name)
    ports = config.load(arguments(found), {}).ports
    for probe, file in (("readinessProbe", ports.ready_file), ("livenessProbe", ports.alive_file)):
        assert f"find {file} -newermt" in found[probe]["exec"]["command"][-1]


def test_openshift_has_no_list_that_the_plugin_could_stand_in_and_enforces_selinux():
    pod = one("DaemonSet", "culvert-node", "platform=openshift")["spec"]["template"]["spec"]
    assert not [word for word in container("agent", "platform=openshift")["args"] if "--cni" in word]
    assert not [volume for volume in pod["volumes"] if volume["name"].startswith("cni")]
    assert pod["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    own = "platform=openshift", "cni.confDir=/c", "node.seLinuxType=super_t"
    assert [word for word in container("agent", *own)["args"] if "--cni-conf-dir" in word]
    pod = one("DaemonSet", "culvert-node", *own)["spec"]["template"]["spec"]
    assert pod["securityContext"]["seLinuxOptions"] == {"type": "super_t"}
    assert "securityContext" not in one("DaemonSet", "culvert-node")["spec"]["template"]["spec"]


def test_processes_take_the_settings_of_another_installation():
    chosen = ["ca.source=cert-manager,ca.issuerName=vault", "istioLabels=true", "rootNamespace=istio-system"]
    chosen += ["auth.extraNodeAccounts={istio-system/ztunnel}", "auth.tokenAudiences={culvert-ca,istio-ca}"]
    controller = ControllerConfig.load(arguments(container("controller", *chosen, namespace="mesh")), {})
    assert controller.callers.node_accounts == ("mesh/culvert-node", "istio-system/ztunnel")
    assert controller.mesh.root_namespace == "istio-system"
    assert controller.election.lease_namespace == "mesh"
    agent = AgentConfig.load(arguments(container("agent", *chosen, namespace="mesh")), {})
    assert agent.control.controller_name in controller.serve.dns_names
    assert agent.enrolment.istio_labels


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_object_says_whose_it_is(platform):
    for document in [*CHART.definitions(), *objects(*settings(platform))]:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "culvert"
        assert labels["app.kubernetes.io/managed-by"] == "culvert"


def test_no_rule_allows_everything_and_secrets_are_allowed_by_name():
    for role in [*objects(), *hooks()]:
        for rule in role.get("rules", ()):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if "secrets" in rule["resources"]:
                assert role["kind"] == "Role"
                assert rule["verbs"] == ["create"] or rule["resourceNames"]


def test_the_controller_runs_without_any_capability_and_nobody_is_privileged():
    assert container("controller")["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for name in ("agent", "ztunnel"):
        context = container(name)["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert not context.get("privileged")


def test_pods_of_a_node_declare_no_ports_for_a_second_one_must_fit_beside_them():
    for name in ("agent", "ztunnel"):
        assert "ports" not in container(name)
    strategy = one("DaemonSet", "culvert-node")["spec"]["updateStrategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_single_controller_does_not_block_draining_its_node():
    assert one("PodDisruptionBudget", "culvert-controller")["spec"]["minAvailable"] == 1
    assert "minAvailable" not in one("PodDisruptionBudget", "culvert-controller", "controller.replicas=1")["spec"]


@pytest.mark.parametrize(
    ("platform", "conf", "binaries"),
    [
        ("generic", "/etc/cni/net.d", "/opt/cni/bin"),
        ("k3s", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
        ("gke", "/etc/cni/net.d", "/home/kubernetes/bin"),
    ],
)
def test_a_platform_has_its_own_cni_directories(platform, conf, binaries):
    volumes = one("DaemonSet", "culvert-node", f"platform={platform}")["spec"]["template"]["spec"]["volumes"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume}
    assert (paths["cni-conf"], paths["cni-bin"]) == (conf, binaries)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("platform=aks", "platform: is none of"),
        ("ca.source=cert-manager", "ca.issuerName: missing"),
        ("logs.level=loud", "logs.level"),
        ("controller.replicas=0", "controller.replicas"),
        ("auth.tokenAudiences={}", "auth.tokenAudiences"),
        ("image=", "image: is empty"),
        ("uninstallHook.stepSeconds=0", "uninstallHook.stepSeconds"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_a_sentence(assignment, said):
    with pytest.raises(SettingsRefused, match=said):
        objects(assignment)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_helm_does_before_an_uninstallation_is_no_object_of_an_installation(platform):
    """Whoever applied it would take the mesh out."""
    assert "culvert-uninstall" not in manifest(CHART, platform) + str(objects(*settings(platform)))
    kinds = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Job"}
    assert {it["kind"] for it in hooks(*settings(platform))} == kinds
    assert {it["metadata"]["name"] for it in hooks(*settings(platform))} == {"culvert-uninstall"}
    assert hooks("uninstallHook.enabled=false") == []


def test_what_helm_makes_for_an_uninstallation_is_gone_after_it_and_made_before_it_is_used():
    for document in hooks():
        annotations = document["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-delete"
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    places = {it["kind"]: int(it["metadata"]["annotations"]["helm.sh/hook-weight"]) for it in hooks()}
    assert max(places["Role"], places["ClusterRole"]) < min(places["RoleBinding"], places["ClusterRoleBinding"])
    assert max(place for kind, place in places.items() if kind != "Job") < places["Job"]


def test_the_uninstallation_of_helm_calls_the_command_with_options_that_it_takes():
    (container,) = job("uninstallHook.stepSeconds=7", namespace="mesh")["spec"]["template"]["spec"]["containers"]
    *program, command = container["command"]
    assert (program, command) == (["/opt/culvert/bin/python", "-m", "cli"], "uninstall")
    given = uninstall.make_context("uninstall", container["args"]).params
    chosen = (given["release"], given["namespace"], given["timeout"], given["purge"])
    assert chosen == ("culvert", "mesh", 7.0, False)


def test_the_uninstallation_of_helm_ends_while_helm_still_waits_for_it():
    spec = job()["spec"]
    steps = 3 * CHART.defaults["uninstallHook"]["stepSeconds"]
    assert steps < spec["activeDeadlineSeconds"] < 300
    assert spec["backoffLimit"] == 1
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_the_uninstallation_of_helm_is_admitted_where_pod_security_is_restricted():
    pod = job()["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "volumes"} & pod.keys()
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]} and context["allowPrivilegeEscalation"] is False
    assert "runAsUser" not in job("platform=openshift")["spec"]["template"]["spec"]["securityContext"]


def test_the_uninstallation_of_helm_finds_a_place_where_a_controller_does():
    chosen = ["controller.tolerations[0].key=a", "controller.nodeSelector.b=c", "imagePullSecrets[0].name=pull"]
    pod, controller = job(*chosen)["spec"]["template"]["spec"], one("Deployment", "culvert-controller", *chosen)
    for key in ("tolerations", "nodeSelector", "imagePullSecrets", "priorityClassName"):
        assert pod[key] == controller["spec"]["template"]["spec"][key]
    assert job()["spec"]["template"]["metadata"]["labels"][MESH_LABEL] == "disabled"
