"""Installing into and removing from a real API server. There are no nodes here, so nothing ever becomes ready."""

import asyncio
import json

import pytest
from click.testing import CliRunner

from cli.install import record, removal, steps
from cli.install.chart import Chart, Release
from cli.install.cleaner import CLEANER
from cli.install.kinds import DAEMON_SETS, DEPLOYMENTS, resource, resource_of
from cli.install.record import LABELS, Record, ref_of
from cli.install.values import complete
from cli.main import culvert
from mesh.enrolment import CAPTURE_ANNOTATION, MESH_LABEL
from mesh.kube.api import Api
from mesh.kube.errors import Forbidden, NotFound
from mesh.kube.resources import (
    AUTHORIZATION_POLICIES,
    CONFIG_MAPS,
    DEFINITIONS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
)
from mesh.kube.transport import Call

CHART = Chart()
CLUSTER_ROLES = resource("rbac.authorization.k8s.io/v1", "ClusterRole")
NETWORK_POLICIES = resource("networking.k8s.io/v1", "NetworkPolicy")
OWN = {"namespace": {"create": True}, "managedBy": "culvert"}


@pytest.fixture
def api(api_server):
    """What a test leaves behind, the next one would take for an installation."""
    yield api_server.api
    run(clear(api_server.api()))


async def clear(api):
    for kind in (CLUSTER_ROLES, resource("rbac.authorization.k8s.io/v1", "ClusterRoleBinding")):
        for name in ("culvert-controller", "culvert-node", "culvert-uninstall"):
            await gone(api, kind, name)
    for definition in CHART.definitions():
        await gone(api, DEFINITIONS, definition["metadata"]["name"])


async def gone(api, kind, name, namespace=""):
    try:
        await api.delete(kind, name, namespace)
    except NotFound:
        return
    for _ in range(100):
        try:
            await api.get(kind, name, namespace)
        except NotFound:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name} does not go")


def run(work):
    return asyncio.run(work)


def wanted(namespace, settings=None):
    objects = CHART.objects(complete(complete(CHART.defaults, OWN), settings or {}), Release(namespace))
    kept = Record(CHART.version, settings or {}, tuple(map(ref_of, objects)))
    return steps.Wanted(namespace, kept, CHART.definitions(), objects)


def quiet(text):
    pass


def test_all_objects_are_taken_and_a_second_time_changes_nothing(api):
    async def work():
        client = api()
        await steps.bring(client, wanted("mesh-twice"), None, quiet)
        before = [await client.get(one, name, "mesh-twice") for one, name in sets()]
        done = await steps.bring(client, wanted("mesh-twice"), await record.read(client, "mesh-twice"), quiet)
        after = [await client.get(one, name, "mesh-twice") for one, name in sets()]
        return before, after, done

    before, after, done = run(work())
    assert [one["metadata"]["generation"] for one in before] == [one["metadata"]["generation"] for one in after]
    assert done.removed == []


def sets():
    return ((DEPLOYMENTS, "culvert-controller"), (DAEMON_SETS, "culvert-node"))


def test_what_is_no_part_of_the_installation_any_more_is_removed(api):
    async def work():
        client = api()
        await steps.bring(client, wanted("mesh-less"), None, quiet)
        earlier = await record.read(client, "mesh-less")
        less = wanted("mesh-less", {"networkPolicy": {"enabled": False}})
        done = await steps.bring(client, less, earlier, quiet)
        with pytest.raises(NotFound):
            await client.get(NETWORK_POLICIES, "culvert-controller", "mesh-less")
        return done, await record.read(client, "mesh-less")

    done, kept = run(work())
    assert done.removed == ["networkpolicy mesh-less/culvert-controller"]
    assert kept.settings == {"networkPolicy": {"enabled": False}}


def test_definitions_of_somebody_elses_serve_and_are_never_touched(api):
    async def work():
        client = api()
        definition = CHART.definitions()[0]
        foreign = {**definition, "metadata": {"name": definition["metadata"]["name"], "labels": {"by": "another"}}}
        await client.apply(DEFINITIONS, foreign)
        done = await steps.bring(client, wanted("mesh-foreign"), None, quiet)
        kept = await record.read(client, "mesh-foreign")
        left = await removal.Removal(client, "mesh-foreign", quiet, 1.0, purge=True).run(kept.objects)
        return done, left, await client.get(DEFINITIONS, foreign["metadata"]["name"])

    done, left, found = run(work())
    assert done.left == [found["metadata"]["name"]]
    assert found["metadata"]["labels"] == {"by": "another"}
    assert f"customresourcedefinition {found['metadata']['name']}" not in left.done


def test_an_installation_by_helm_is_not_overwritten(api):
    async def work():
        client = api()
        role = next(one for one in wanted("mesh-helm").objects if one["kind"] == "ClusterRole")
        labels = {**role["metadata"]["labels"], record.MANAGED_BY: "Helm"}
        await client.apply(CLUSTER_ROLES, {**role, "metadata": {**role["metadata"], "labels": labels}})
        await steps.bring(client, wanted("mesh-helm"), None, quiet)

    with pytest.raises(steps.InstallRefused, match="managed by Helm"):
        run(work())


def test_removal_takes_labels_objects_and_definitions_and_says_what_stays(api):
    async def work():
        client = api()
        await steps.bring(client, wanted("mesh-out"), None, quiet)
        await client.create(NAMESPACES, {"metadata": {"name": "shop-out", "labels": {MESH_LABEL: "enabled"}}})
        pod = {
            "metadata": {
                "name": "web",
                "annotations": {CAPTURE_ANNOTATION: "bypassing"},
                "labels": {MESH_LABEL: "enabled"},
            }
        }
        pod["spec"] = {"containers": [{"name": "a", "image": "b"}]}
        await client.create(PODS, pod, "shop-out")
        policy = {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "p"},
            "spec": {},
        }
        await client.create(AUTHORIZATION_POLICIES, policy, "shop-out")
        await client.create(SECRETS, {"metadata": {"name": "cacerts"}}, "mesh-out")
        kept = await record.read(client, "mesh-out")
        first = await removal.Removal(client, "mesh-out", quiet, 1.0).run(kept.objects)
        stays = [ref for ref in kept.objects if await is_there(client, ref)], await record.read(client, "mesh-out")
        await say_that_nodes_are_clean(client, "mesh-out")
        removed = await removal.Removal(client, "mesh-out", quiet, 1.0).run(kept.objects)
        found = await client.get(PODS, "web", "shop-out"), await client.get(NAMESPACES, "shop-out")
        rest = [ref for ref in kept.objects if ref.kind != "Namespace" and await is_there(client, ref)]
        return first, stays, removed, found, rest

    async def is_there(client, ref):
        try:
            await client.get(resource(ref.api_version, ref.kind), ref.name, ref.namespace)
        except NotFound:
            return False
        return True

    first, (stays, kept), removed, (pod, namespace), rest = run(work())
    assert "nodes to be cleaned: not within 1 s" in first.left[0]  # no controller is there that would make pods
    assert "repeat `culvert uninstall`" in first.left[1]
    assert {ref.kind for ref in stays} == {"ServiceAccount", "Namespace"}
    assert kept is not None
    assert MESH_LABEL not in namespace["metadata"]["labels"]
    assert not pod["metadata"].get("labels") and not pod["metadata"].get("annotations")
    assert rest == []
    left = "\n".join(removed.left)
    assert "authorizationpolicies.security.istio.io: 1 objects" in left
    assert "namespace mesh-out: holds secrets cacerts" in left
    assert "nodes" not in left
    assert "customresourcedefinition peerauthentications.security.istio.io" in first.done


async def say_that_nodes_are_clean(client, namespace):
    """As Kubernetes' controller would of a cluster without nodes."""
    found = await client.get(DAEMON_SETS, CLEANER, namespace)
    status = {"observedGeneration": found["metadata"]["generation"], "desiredNumberScheduled": 0}
    counts = dict.fromkeys(("currentNumberScheduled", "numberMisscheduled", "numberReady"), 0)
    await client.merge_patch(DAEMON_SETS, CLEANER, {"status": {**status, **counts}}, namespace, "status")


def as_the_hook(api_server, tmp_path, namespace):
    """Helm's part done by hand: what is of a release, and the rights of its Job; a kubeconfig of that Job."""
    values, release = CHART.values(), Release(namespace, service="Helm")

    async def work():
        client = api_server.api()
        await client.create(NAMESPACES, {"metadata": {"name": namespace}})
        for document in CHART.objects(values, release):
            document["metadata"]["annotations"] = {"meta.helm.sh/release-name": "culvert"}
            await client.apply(resource_of(document), document, document["metadata"].get("namespace", ""))
        for document in CHART.hooks(values, release):
            if document["kind"] != "Job":
                await client.apply(resource_of(document), document, document["metadata"].get("namespace", ""))
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
        call = Call("POST", SERVICE_ACCOUNTS.path(namespace, "culvert-uninstall", "token"), body=body)
        return await client.request(call, lambda answer: answer["status"]["token"])

    text = json.loads(api_server.kubeconfig.read_text())
    text["users"] = [{"name": "user", "user": {"token": run(work())}}]
    (tmp_path / "hook").write_text(json.dumps(text))
    (job,) = [one for one in CHART.hooks(values, release) if one["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return tmp_path / "hook", [*container["args"], "--timeout", "1", "--kubeconfig", str(tmp_path / "hook")]


def test_the_rights_of_helms_uninstallation_are_enough_for_it_and_for_nothing_else(api, api_server, tmp_path):
    kubeconfig, arguments = as_the_hook(api_server, tmp_path, "mesh-hook")

    async def pods():
        client = api()
        await client.create(NAMESPACES, {"metadata": {"name": "shop-hook", "labels": {MESH_LABEL: "enabled"}}})
        annotated = {"name": "web", "annotations": {CAPTURE_ANNOTATION: "bypassing"}, "labels": {MESH_LABEL: "enabled"}}
        spec = {"containers": [{"name": "a", "image": "b"}]}
        await client.create(PODS, {"metadata": annotated, "spec": spec}, "shop-hook")

    run(pods())
    first = CliRunner().invoke(culvert, ["uninstall", *arguments])
    assert first.exit_code == 1
    assert "nodes to be cleaned: not within 1 s" in first.stdout and "`helm uninstall`" in first.stdout
    run(say_that_nodes_are_clean(api(), "mesh-hook"))
    done = CliRunner().invoke(culvert, ["uninstall", *arguments])
    assert done.exit_code == 0, done.output
    assert "forbidden" not in first.output + done.output
    metadata = run(api().get(PODS, "web", "shop-hook"))["metadata"]
    assert not metadata.get("labels") and not metadata.get("annotations")

    async def more():
        client = Api.connect(kubeconfig)
        for kind, name in ((SECRETS, "culvert-ca"), (CONFIG_MAPS, "culvert-ca-root")):
            with pytest.raises(Forbidden):
                await client.get(kind, name, "mesh-hook")
        with pytest.raises(Forbidden):
            await client.delete(DEPLOYMENTS, "culvert-controller", "mesh-hook")
        for name, namespace in (("another", "mesh-hook"), (CLEANER, "shop-hook")):
            (node_set,) = [one for one in wanted("mesh-hook").objects if one["kind"] == "DaemonSet"]
            node_set["metadata"] |= {"name": name, "namespace": namespace}
            with pytest.raises(Forbidden):
                await client.apply(DAEMON_SETS, node_set, namespace)

    run(more())


def test_rights_that_an_uninstallation_by_helm_has_left_go_with_what_the_controller_made(api, api_server, tmp_path):
    as_the_hook(api_server, tmp_path, "mesh-broken")
    for kind, name in ((DAEMON_SETS, "culvert-node"), (DEPLOYMENTS, "culvert-controller")):  # `--no-hooks`
        run(api().delete(kind, name, "mesh-broken"))
    options = ["--kubeconfig", str(api_server.kubeconfig), "--namespace", "mesh-broken"]
    done = CliRunner().invoke(culvert, ["uninstall", *options])
    assert "removed clusterroles.rbac.authorization.k8s.io culvert-uninstall" in done.stdout
    for kind in (CLUSTER_ROLES, resource("rbac.authorization.k8s.io/v1", "ClusterRoleBinding")):
        with pytest.raises(NotFound):
            run(api().get(kind, "culvert-uninstall"))
    with pytest.raises(NotFound):
        run(api().get(SERVICE_ACCOUNTS, "culvert-uninstall", "mesh-broken"))


def test_an_installation_ends_a_removal_that_was_not_finished(api):
    async def work():
        client = api()
        await steps.bring(client, wanted("mesh-back"), None, quiet)
        kept = await record.read(client, "mesh-back")
        await removal.Removal(client, "mesh-back", quiet, 0.5).run(kept.objects)
        await client.get(DAEMON_SETS, CLEANER, "mesh-back")
        await steps.bring(client, wanted("mesh-back"), kept, quiet)
        with pytest.raises(NotFound):
            await client.get(DAEMON_SETS, CLEANER, "mesh-back")
        await client.get(DAEMON_SETS, "culvert-node", "mesh-back")

    run(work())


def test_where_nothing_is_installed_there_is_nothing_to_remove(api, api_server):
    options = ["--kubeconfig", str(api_server.kubeconfig), "--namespace", "mesh-never"]
    done = CliRunner().invoke(culvert, ["uninstall", *options])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "namespace mesh-never has no installation" in done.stderr


def test_install_says_what_it_waits_for_and_goes_on_from_there(api, api_server):
    options = ["--kubeconfig", str(api_server.kubeconfig), "--namespace", "mesh-cli"]
    done = CliRunner().invoke(culvert, ["install", *options, "--timeout", "1"])
    assert done.exit_code == 1
    assert "the controller: not within 1 s" in done.stderr
    assert "0 of 2 ready" in done.stderr
    done = CliRunner().invoke(culvert, ["upgrade", *options, "--set", "controller.replicas=1", "--dry-run", "--json"])
    assert done.exit_code == 0, done.stderr
    kinds = {one["kind"]: one for one in json.loads(done.stdout)["objects"]}
    assert kinds["Deployment"]["spec"]["replicas"] == 1
    assert kinds["Namespace"]["metadata"]["labels"].items() >= LABELS.items()


def test_a_repeated_installation_keeps_the_settings_that_are_not_named(api, api_server):
    options = ["--kubeconfig", str(api_server.kubeconfig), "--namespace", "mesh-again", "--timeout", "0.1"]
    CliRunner().invoke(culvert, ["install", *options, "--image", "a/b:c", "--set", "logs.level=debug"])
    CliRunner().invoke(culvert, ["install", *options, "--set", "logs.level=info"])
    kept = run(record.read(api(), "mesh-again"))
    assert kept.settings == {"image": "a/b:c", "logs": {"level": "info"}}


def test_an_upgrade_of_what_helm_has_installed_is_refused_with_what_to_do(api, api_server):
    async def work():
        role = next(one for one in wanted("mesh-theirs").objects if one["kind"] == "ClusterRole")
        labels = {**role["metadata"]["labels"], record.MANAGED_BY: "Helm"}
        await api().apply(CLUSTER_ROLES, {**role, "metadata": {**role["metadata"], "labels": labels}})

    run(work())
    for word in ("install", "upgrade"):
        done = CliRunner().invoke(culvert, [word, "--kubeconfig", str(api_server.kubeconfig), "-n", "mesh-theirs"])
        assert done.exit_code == 1
        assert "`helm upgrade`" in done.stderr


def test_a_namespace_is_not_enrolled_into_a_mesh_that_is_not_there(own_server):
    run(own_server.api().create(NAMESPACES, {"metadata": {"name": "shop"}}))
    done = CliRunner().invoke(culvert, ["enrol", "shop", "--kubeconfig", str(own_server.kubeconfig)])
    assert done.exit_code == 1
    assert "`culvert install` first" in done.stderr
    assert MESH_LABEL not in run(own_server.api().get(NAMESPACES, "shop"))["metadata"]["labels"]


def test_an_upgrade_of_nothing_is_refused(api, api_server):
    done = CliRunner().invoke(culvert, ["upgrade", "--kubeconfig", str(api_server.kubeconfig), "-n", "mesh-none"])
    assert done.exit_code == 1
    assert "`culvert install` makes one" in done.stderr


def rows(done):
    return {row["name"]: row for row in json.loads(done.stdout)["checks"]}


def test_check_says_what_a_cluster_lacks_before_and_what_does_not_work_after(api, api_server):
    options = ["--kubeconfig", str(api_server.kubeconfig), "--namespace", "mesh-check", "--json"]
    found = rows(CliRunner().invoke(culvert, ["check", "--pre", *options]))
    assert found["rights"]["passed"] and found["Kubernetes"]["passed"] and found["namespace"]["passed"]
    assert not found["nodes"]["passed"]  # an API server alone has none
    CliRunner().invoke(culvert, ["install", *options, "--timeout", "0.1"])
    done = CliRunner().invoke(culvert, ["check", *options])
    assert done.exit_code == 1
    found = rows(done)
    assert found["version"]["passed"]
    assert "0 of 2 ready" in found["controller"]["sentence"]
    assert found["leader"]["sentence"] == "no controller has ever been elected"
    assert found["policies"]["passed"]


def test_check_names_the_rights_that_are_missing(api, api_server, tmp_path):
    text = json.loads(api_server.kubeconfig.read_text())
    text["users"] = [{"name": "user", "user": {}}]
    (tmp_path / "config").write_text(json.dumps(text))
    done = CliRunner().invoke(culvert, ["check", "--pre", "--kubeconfig", str(tmp_path / "config"), "--json"])
    assert done.exit_code == 1
    assert "may not" in done.stdout or "forbidden" in done.stdout


def test_a_definition_that_serves_too_little_is_found_before(api, api_server):
    async def work():
        definition = json.loads(json.dumps(CHART.definitions()[0]))
        definition["metadata"]["labels"] = {}
        definition["spec"]["versions"] = [{**definition["spec"]["versions"][1], "storage": True}]
        await api_server.api().apply(DEFINITIONS, definition)

    run(work())
    done = CliRunner().invoke(culvert, ["check", "--pre", "--kubeconfig", str(api_server.kubeconfig), "--json"])
    assert not rows(done)["authorizationpolicies.security.istio.io"]["passed"]
    done = CliRunner().invoke(culvert, ["install", "--kubeconfig", str(api_server.kubeconfig), "-n", "mesh-old"])
    assert done.exit_code == 1
    assert "the controller needs v1" in done.stderr
