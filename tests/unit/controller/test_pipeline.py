"""Incremental translation: whatever happens in whatever order, the store equals a translation from nothing."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.index.captures import Captures
from controller.index.index import STRICT, Index, Target, What
from controller.index.objects import Change, Kind
from controller.pipeline import Pipeline
from controller.serve.hub import Hub
from controller.serve.store import ResourceSet
from controller.status.metrics import Metrics
from controller.translate.compile import Inputs
from controller.translate.facts import Mesh
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.unit.controller import recorded
from tests.unit.controller.nodes import pod, policy

ROOT = "culvert-system"
NAMESPACES = ("a", "a", ROOT)  # a small world, so that objects meet


class QuietHub(Hub):
    """A hub without a loop."""

    def __init__(self) -> None:
        super().__init__([ResourceSet(ADDRESS_TYPE), ResourceSet(AUTHORIZATION_TYPE)])
        self.calls = 0

    def changed(self) -> None:
        self.calls += 1


def make() -> tuple[Pipeline, QuietHub]:
    hub = QuietHub()
    return Pipeline(Inputs(Index(ROOT), Captures(), Mesh()), hub, Metrics()), hub


def content(hub: Hub) -> dict[str, tuple[str, bytes, tuple[str, ...]]]:
    return {
        f"{type_url} {one.name}": (one.version, one.encoded, one.tags)
        for type_url, resources in hub.sets.items()
        for one in resources.resources()
    }


def change(document: dict[str, Any]) -> Change:
    (found,) = recorded.changes([document])
    return found


LABELS = st.sampled_from([{"app": "x"}, {"app": "x", "tier": "1"}, {"app": "y"}, {}])
SELECTORS = st.sampled_from([None, {}, {"app": "x"}, {"app": "x"}, {"tier": "1"}])
MODES = st.sampled_from(["STRICT", "PERMISSIVE", "DISABLE", "UNSET"])


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    number = draw(st.integers(1, 2))
    made = pod(f"p{number}", f"10.0.0.{number}", draw(st.sampled_from("mn")), draw(st.sampled_from(NAMESPACES)))
    made["metadata"]["labels"] = draw(LABELS)
    made["metadata"]["uid"] = draw(st.sampled_from(["u1", "u2"]))
    if draw(st.integers(0, 2)) == 0:
        made["metadata"]["annotations"] = {"culvert.io/capture": draw(st.sampled_from(["enabled", "pending"]))}
    made["status"]["phase"] = draw(st.sampled_from(["Running", "Running", "Running", "Succeeded"]))
    made["spec"]["containers"] = [{"ports": [{"name": "web", "containerPort": draw(st.sampled_from([80, 8080]))}]}]
    return made


@st.composite
def services(draw: st.DrawFn) -> dict[str, Any]:
    spec: dict[str, Any] = {"ports": [{"name": "http", "port": 80, "targetPort": draw(st.sampled_from([80, "web"]))}]}
    if (selector := draw(SELECTORS)) is not None:
        spec["selector"] = selector
    if draw(st.integers(0, 3)) == 0:
        spec["trafficDistribution"] = "PreferClose"
    spec["type"] = draw(st.sampled_from(["ClusterIP", "ClusterIP", "ClusterIP", "ExternalName"]))
    name, namespace = draw(st.sampled_from(["s1", "s1", "s2"])), draw(st.sampled_from(NAMESPACES))
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


@st.composite
def slices(draw: st.DrawFn) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": draw(st.sampled_from(["s1", "s1", "s2"]))}
    target = {"kind": "Pod", "name": draw(st.sampled_from(["p1", "p2"]))}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "e", "namespace": draw(st.sampled_from(NAMESPACES)), "labels": labels},
        "ports": [{"name": "http", "port": 9090}],
        "endpoints": draw(
            st.lists(
                st.one_of(
                    st.just({"addresses": ["192.0.2.1"]}), st.just({"addresses": ["10.0.0.1"], "targetRef": target})
                ),
                max_size=2,
            )
        ),
    }


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    spec: dict[str, Any] = {"action": draw(st.sampled_from(["ALLOW", "DENY", "AUDIT"])), "rules": [{}]}
    if (selector := draw(SELECTORS)) is not None:
        spec["selector"] = {"matchLabels": selector}
    return policy(draw(st.sampled_from("qqr")), spec, ns=draw(st.sampled_from(NAMESPACES)))


@st.composite
def peers(draw: st.DrawFn) -> dict[str, Any]:
    spec: dict[str, Any] = {"mtls": {"mode": draw(MODES)}}
    if selector := draw(SELECTORS):
        spec["selector"] = {"matchLabels": selector}
        spec["portLevelMtls"] = draw(st.dictionaries(st.sampled_from([80, 81]), MODES.map(lambda mode: {"mode": mode})))
    return policy(draw(st.sampled_from("qqr")), spec, "PeerAuthentication", draw(st.sampled_from(NAMESPACES)))


@st.composite
def others(draw: st.DrawFn) -> dict[str, Any]:
    annotations = draw(st.sampled_from([{}, {"networking.istio.io/traffic-distribution": "PreferSameNode"}]))
    labels = {"topology.kubernetes.io/zone": draw(st.sampled_from("zy"))}
    if draw(st.booleans()):
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": draw(st.sampled_from("mn")), "labels": labels}}
    name = draw(st.sampled_from(NAMESPACES))
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}}


DOCUMENTS = st.one_of(pods(), pods(), services(), services(), slices(), policies(), peers(), others())
REPORTS = st.tuples(
    st.sampled_from("mn"), st.dictionaries(st.sampled_from(["a/p1", "a/p2"]), st.sampled_from(["u1", "u2"]))
)
# A document is put, or taken away (True), or an agent reports.
IS_REMOVAL = st.sampled_from([False, False, False, True])
EVENTS = st.lists(st.one_of(st.tuples(DOCUMENTS, IS_REMOVAL), REPORTS), min_size=25, max_size=40)


WHAT = {
    Kind.POD: What.POD,
    Kind.SERVICE: What.SERVICE,
    Kind.ENDPOINT_SLICE: What.SLICE,
    Kind.AUTHORIZATION_POLICY: What.POLICY,
    Kind.PEER_AUTHENTICATION: What.PEER,
}


def play(events: Sequence[Any], pipeline: Pipeline) -> None:
    for first, second in events:
        if isinstance(first, str):
            pipeline.report(first, second)
        else:
            made = change(first)
            pipeline.apply([Change(made.kind, made.key, None) if second else made])


def rebuild(pipeline: Pipeline, order: Sequence[Change] | None = None) -> QuietHub:
    """The same objects and captures from nothing, every target translated, whatever the index says is touched."""
    fresh, hub = make()
    for node, keys in pipeline.inputs.captures._by_node.items():
        fresh.report(node, keys)
    objects = [Change(kind, item.key, item) for kind in Kind for item in pipeline.inputs.index.all(kind)]
    fresh.inputs.index.apply(order or objects)
    sources = [Target(WHAT[one.kind], one.key) for one in objects if one.kind in WHAT]
    fresh._translate([*sources, STRICT])
    return hub


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(EVENTS)
def test_incremental_translation_equals_a_full_one(events: Sequence[Any]) -> None:
    pipeline, hub = make()
    for position in range(0, len(events), 3):
        play(events[position : position + 3], pipeline)
        assert content(hub) == content(rebuild(pipeline))


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False))
def test_the_order_of_objects_does_not_matter(events: Sequence[Any], random: Any) -> None:
    pipeline, hub = make()
    play(events, pipeline)
    changes = [Change(kind, item.key, item) for kind in Kind for item in pipeline.inputs.index.all(kind)]
    random.shuffle(changes)
    assert content(hub) == content(rebuild(pipeline, changes))


def test_the_same_objects_again_are_no_change() -> None:
    pipeline, hub = make()
    batch = recorded.changes(recorded.documents(recorded.load("base")))
    pipeline.apply(batch)
    assert hub.calls == 1
    pipeline.apply(batch)
    assert hub.calls == 1


def test_a_pod_change_touches_that_pod_only() -> None:
    pipeline, hub = make()
    pipeline.apply(recorded.changes(recorded.documents(recorded.load("base"))))
    before = {resources.type_url: resources.revision for resources in hub.sets.values()}
    pipeline.apply([change(pod("web-1", "10.9.9.9"))])
    assert hub.sets[ADDRESS_TYPE].changed_since(before[ADDRESS_TYPE]) == ["Kubernetes//Pod/shop/web-1"]
    assert hub.sets[AUTHORIZATION_TYPE].revision == before[AUTHORIZATION_TYPE]


def test_a_report_of_a_pods_predecessor_captures_nothing() -> None:
    pipeline, hub = make()
    pipeline.report("node-a", {"shop/web": "uid-of-the-pod-before"})
    pipeline.apply([change(pod("web", "10.0.0.1"))])
    one = hub.sets[ADDRESS_TYPE].get("Kubernetes//Pod/shop/web")
    assert one is not None
    assert not recorded.message_of(one).workload.tunnel_protocol  # type: ignore[union-attr]


def test_a_node_is_forgotten_with_the_last_of_its_pods_and_not_before() -> None:
    pipeline, hub = make()
    web = pod("web", "10.0.0.1", "node-a")
    web["metadata"]["annotations"] = {"culvert.io/capture": "enabled"}  # of an earlier life: the agent knows better
    pipeline.apply([change(web)])
    pipeline.report("node-a", {})
    pipeline.apply([Change(Kind.NODE, "node-a", None)])
    assert content(hub) == content(rebuild(pipeline))
    one = hub.sets[ADDRESS_TYPE].get("Kubernetes//Pod/shop/web")
    assert one is not None
    assert not recorded.message_of(one).workload.tunnel_protocol  # type: ignore[union-attr]
    pipeline.apply([Change(Kind.POD, "shop/web", None)])
    assert not pipeline.inputs.captures.has_reported("node-a")


def test_a_node_whose_agent_is_there_is_not_forgotten() -> None:
    pipeline, _ = make()
    pipeline.agent_came("node-a")
    pipeline.report("node-a", {})
    pipeline.apply([Change(Kind.NODE, "node-a", None)])
    assert pipeline.inputs.captures.has_reported("node-a")


def test_a_report_of_a_node_that_the_pod_does_not_run_on_captures_nothing() -> None:
    pipeline, hub = make()
    pipeline.apply([change(pod("web", "10.0.0.1", "node-a"))])
    pipeline.report("node-b", {"shop/web": "uid-web"})
    one = hub.sets[ADDRESS_TYPE].get("Kubernetes//Pod/shop/web")
    assert one is not None
    assert not recorded.message_of(one).workload.tunnel_protocol  # type: ignore[union-attr]
