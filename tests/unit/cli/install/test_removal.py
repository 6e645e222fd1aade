"""What `helm uninstall` has done before it: `culvert uninstall --for-helm`, on a few objects without a cluster."""

import asyncio
import copy
import json

import pytest
from click.testing import CliRunner

from cli import cluster
from cli.install.chart import Chart, Release
from cli.install.cleaner import CLEANER
from cli.install.command import uninstall
from cli.install.kinds import DAEMON_SETS, DEPLOYMENTS, resource_of
from mesh.enrolment import CAPTURE_ANNOTATION, CAPTURED, MESH_LABEL
from mesh.kube.api import Page
from mesh.kube.errors import NotFound
from mesh.kube.resources import CONFIG_MAPS, LEASES, NAMESPACES, NODES, PODS, SECRETS

SYSTEM = "culvert-system"
CHART = Chart()
MADE = ((SECRETS, "culvert-ca"), (CONFIG_MAPS, "culvert-ca-root"), (LEASES, "culvert-controller"))
RELEASE_NAME = "meta.helm.sh/release-name"


class World:
    """Objects, agents that let go at once, and a kubelet per node that starts what cleans it, unless it is silent."""

    def __init__(self, *silent):
        self.objects = {}
        self.silent = silent
        for node in ("n1", "n2"):
            status = "Unknown" if node in silent else "True"
            self.put(NODES, node, status={"conditions": [{"type": "Ready", "status": status}]})
        self.put(NAMESPACES, "shop", labels={MESH_LABEL: "enabled"})
        self.put(PODS, "web", "shop", annotations={CAPTURE_ANNOTATION: CAPTURED}, status={"phase": "Running"})
        for document in CHART.objects(CHART.defaults, Release(service="Helm")):
            if document["kind"] in ("Deployment", "DaemonSet"):
                document["metadata"]["annotations"] = {RELEASE_NAME: "culvert"}
                self.apply_now(resource_of(document), document, SYSTEM)
        for resource, name in MADE:
            self.put(resource, name, SYSTEM)

    def put(self, resource, name, namespace="", labels=None, annotations=None, **more):
        metadata = {"name": name, "uid": f"of {name}", "labels": labels or {}, "annotations": annotations or {}}
        metadata |= {"namespace": namespace} if namespace else {}
        self.objects[resource, namespace, name] = {"metadata": metadata, "spec": {}, **more}

    def apply_now(self, resource, document, namespace):
        found = copy.deepcopy(document)
        found["metadata"] |= {"uid": f"of {found['metadata']['name']}", "generation": 1}
        self.objects[resource, namespace, found["metadata"]["name"]] = found
        if found["metadata"]["name"] == CLEANER:
            found["status"] = {"observedGeneration": 1, "desiredNumberScheduled": 2}
            for node in ("n1", "n2"):
                self.put(PODS, f"{CLEANER}-{node}", SYSTEM, {"app.kubernetes.io/name": CLEANER})
                pod = self.objects[PODS, SYSTEM, f"{CLEANER}-{node}"]
                pod["spec"]["nodeName"] = node
                pod["status"] = {"conditions": [] if node in self.silent else [{"type": "Ready", "status": "True"}]}

    async def get(self, resource, name, namespace=""):
        if (resource, namespace, name) not in self.objects:
            raise NotFound(name, 404)
        return copy.deepcopy(self.objects[resource, namespace, name])

    async def page(self, selection):
        key, _, value = selection.label_selector.partition("=")
        found = [one for (kind, space, _), one in self.objects.items() if kind == selection.resource]
        found = [one for one in found if selection.namespace in ("", one["metadata"].get("namespace"))]
        if key:
            found = [one for one in found if key in one["metadata"]["labels"]]
            found = [one for one in found if value in ("", one["metadata"]["labels"][key])]
        return Page(copy.deepcopy(found), "1", "")

    async def pages(self, selection):
        yield (await self.page(selection)).items

    async def merge_patch(self, resource, name, patch, namespace=""):
        metadata = self.objects[resource, namespace, name]["metadata"]
        for part, changes in patch["metadata"].items():
            assert set(changes.values()) == {None}, "nothing is written"
            metadata[part] = {key: value for key, value in metadata[part].items() if key not in changes}
        if (resource, name) == (NAMESPACES, "shop"):
            self.objects[PODS, "shop", "web"]["metadata"]["annotations"][CAPTURE_ANNOTATION] = "bypassing"

    async def apply(self, resource, document, namespace):
        self.apply_now(resource, document, namespace)

    async def delete(self, resource, name, namespace, uid):
        del self.objects[resource, namespace, name]
        self.objects = {key: one for key, one in self.objects.items() if not key[2].startswith(f"{name}-n")}

    def has(self, resource, name, namespace=SYSTEM):
        return (resource, namespace, name) in self.objects


@pytest.fixture
def for_helm(monkeypatch):
    """The command in a world; its options may be added to."""

    def run(world, *more):
        monkeypatch.setattr(cluster, "run", lambda way, work: asyncio.run(work(world)))
        return CliRunner().invoke(uninstall, ["--for-helm", "culvert", "--timeout", "0", *more])

    return run


def test_nodes_are_clean_pods_let_go_and_every_object_is_left_to_helm(for_helm):
    world = World()
    done = for_helm(world)
    assert done.exit_code == 0, done.output
    assert "what was pinned and entered on 2 nodes" in done.stdout
    assert not world.has(DAEMON_SETS, "culvert-node") and not world.has(DAEMON_SETS, CLEANER)
    assert world.has(DEPLOYMENTS, "culvert-controller")
    assert MESH_LABEL not in world.objects[NAMESPACES, "", "shop"]["metadata"]["labels"]
    assert world.objects[PODS, "shop", "web"]["metadata"]["annotations"] == {}


def test_what_the_controller_has_made_stays_for_an_installation_that_follows(for_helm):
    world = World()
    for_helm(world)
    assert all(world.has(resource, name) for resource, name in MADE)


def test_a_node_that_could_not_be_cleaned_is_named_and_helm_told_of_it(for_helm):
    world = World("n2")
    done = for_helm(world)
    assert done.exit_code == 1
    left = [line for line in done.stdout.splitlines() if line.startswith("left")]
    assert "node n2: programs, pins and CNI entry (does not answer" in left[0]
    assert "repeat `helm uninstall`" in left[1] and "`helm uninstall --no-hooks` gives it up" in left[1]
    assert world.has(DAEMON_SETS, CLEANER), "it cleans the node when that is back"
    world.silent = ()
    world.objects[PODS, SYSTEM, f"{CLEANER}-n2"]["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    assert for_helm(world).exit_code == 0
    assert not world.has(DAEMON_SETS, CLEANER)


def test_a_template_that_has_the_label_is_named_and_is_no_failure(for_helm):
    world = World()
    world.put(PODS, "app", "shop", labels={MESH_LABEL: "enabled"}, status={"phase": "Running"})
    world.objects[PODS, "shop", "app"]["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "app-1"}]
    done = for_helm(world, "--json")
    assert done.exit_code == 0, done.output
    assert "replicaset app-1: new pods of it carry the label" in json.loads(done.stdout)["left"][0]


def test_repeated_after_its_end_it_finds_nothing_to_do(for_helm):
    world = World()
    for_helm(world)
    done = for_helm(world)
    assert done.exit_code == 0, done.output
    assert "no DaemonSet culvert-node is there" in done.stdout


def test_once_all_objects_are_gone_there_is_nothing_to_refuse(for_helm):
    world = World()
    del world.objects[DEPLOYMENTS, SYSTEM, "culvert-controller"]
    assert for_helm(world).exit_code == 0


@pytest.mark.parametrize("annotations", [{}, {RELEASE_NAME: "another"}])
def test_what_helm_has_only_rendered_is_not_touched(for_helm, annotations):
    world = World()
    world.objects[DEPLOYMENTS, SYSTEM, "culvert-controller"]["metadata"]["annotations"] = annotations
    before = copy.deepcopy(world.objects)
    done = for_helm(world)
    assert done.exit_code == 1
    assert "is not of Helm's release culvert: nothing was done" in done.stderr
    assert world.objects == before


def test_nothing_can_be_given_up_in_helms_name(for_helm):
    done = for_helm(World(), "--purge")
    assert done.exit_code == 2
    assert "--purge" in done.stderr
