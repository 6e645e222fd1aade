"""What depends on what: each kind of change re-translates what reads it, and nothing else."""

from typing import Any

import pytest

from controller.index.index import STRICT, Index, Target, What
from controller.index.objects import Change, Kind
from tests.unit.controller import recorded
from tests.unit.controller.nodes import pod, policy

ROOT = "culvert-system"
WEB, OTHER, FAR = (Target(What.POD, key) for key in ("a/web", "a/other", "b/far"))


def labelled(made: dict[str, Any], **labels: str) -> dict[str, Any]:
    made["metadata"]["labels"] = labels
    return made


def service(selector: dict[str, str] | None, name: str = "s") -> dict[str, Any]:
    spec = {"ports": [{"name": "http", "port": 80}], **({"selector": selector} if selector else {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "a"}, "spec": spec}


def piece(*pods: str) -> dict[str, Any]:
    endpoints = [{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": name}} for name in pods]
    metadata = {"name": "e", "namespace": "a", "labels": {"kubernetes.io/service-name": "s"}}
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "endpoints": endpoints}


def plain(kind: str, name: str, **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, **metadata}}


def authz(ns: str, selector: dict[str, str] | None = None) -> dict[str, Any]:
    return policy("p", {"selector": {"matchLabels": selector}} if selector is not None else {}, ns=ns)


def peer(ns: str, selector: dict[str, str] | None = None) -> dict[str, Any]:
    chosen = {"selector": {"matchLabels": selector}} if selector else {}
    return policy("q", {"mtls": {"mode": "STRICT"}, **chosen}, "PeerAuthentication", ns)


WORLD = [
    labelled(pod("web", "10.0.0.1", "m", "a"), app="x"),
    labelled(pod("other", "10.0.0.2", "m", "a"), app="y"),
    labelled(pod("far", "10.0.0.3", "n", "b"), app="x"),
]
SERVICE, SLICE = Target(What.SERVICE, "a/s"), Target(What.SLICE, "a/e")

CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], set[Target]]] = {
    "a pod": ([], pod("web", "10.0.0.9", "m", "a"), {WEB}),
    "a node": ([], plain("Node", "m", labels={"topology.kubernetes.io/zone": "z"}), {WEB, OTHER}),
    "a service and the pods it selects": ([], service({"app": "x"}), {SERVICE, WEB}),
    "pods that a service no longer selects": ([service({"app": "y"})], service({"app": "x"}), {SERVICE, WEB, OTHER}),
    "a slice and its pods": ([service(None)], piece("other"), {SLICE, OTHER}),
    "a slice of a service with a selector": ([service({"app": "x"})], piece("other"), {SLICE}),
    "a slice of no service": ([], piece("other"), {SLICE}),
    "a service with slices and their pods": ([piece("web")], service(None), {SERVICE, SLICE, WEB}),
    "a namespace's services": (
        [service(None)],
        plain("Namespace", "a", annotations={"networking.istio.io/traffic-distribution": "PreferClose"}),
        {SERVICE},
    ),
    "a policy for all": ([], authz("a"), {Target(What.POLICY, "a/p")}),
    "a policy and who it selects": ([], authz("a", {"app": "x"}), {Target(What.POLICY, "a/p"), WEB}),
    "a policy that begins to select": (
        [authz("a")],
        authz("a", {"app": "y"}),
        {Target(What.POLICY, "a/p"), OTHER},
    ),
    "a root policy that selects": ([], authz(ROOT, {"app": "x"}), {Target(What.POLICY, f"{ROOT}/p"), WEB, FAR}),
    "a namespace's mode": ([], peer("a"), {STRICT, Target(What.PEER, "a/q"), WEB, OTHER}),
    "a workload's mode": ([], peer("a", {"app": "x"}), {STRICT, Target(What.PEER, "a/q"), WEB}),
    "the mesh's mode and what inherits it": (
        [peer("b", {"app": "x"})],
        peer(ROOT),
        {STRICT, Target(What.PEER, f"{ROOT}/q"), Target(What.PEER, "b/q"), WEB, OTHER, FAR},
    ),
    "a service account": ([], plain("ServiceAccount", "sa", namespace="a"), set()),
}


@pytest.mark.parametrize("name", CASES)
def test_touched_by(name: str) -> None:
    before, changed, expected = CASES[name]
    index = Index(ROOT)
    index.apply(recorded.changes([*WORLD, *before]))
    (change,) = recorded.changes([changed])
    assert index.apply([change]) == expected
    assert index.apply([change]) == set()
    gone = Change(change.kind, change.key, None)
    if change.kind is not Kind.POD:
        still = expected - ({OTHER} if name == "pods that a service no longer selects" else set())
        assert index.apply([gone]) == still


def test_identities_of_a_node_are_those_of_its_running_pods() -> None:
    index = Index(ROOT)
    done = pod("done", "10.0.0.4", "m", "a", sa="done")
    done["status"]["phase"] = "Succeeded"
    index.apply(recorded.changes([*WORLD, done, pod("lost", "10.0.0.5", "", "a", sa="lost")]))
    assert index.runs_on("m", "a", "web")
    assert not index.runs_on("n", "a", "web")
    assert not index.runs_on("m", "b", "web")
    assert not index.runs_on("m", "a", "done")
    assert not index.runs_on("", "a", "lost")
