"""Documents of the core API: defaults that an API server would have filled in, and faults that name the field."""

from typing import Any

import pytest

from controller.index.fields import ObjectFault
from controller.index.objects import Distribution, EndpointSlice, Kind, Pod, Service
from controller.index.parse import check_version, key_of, kind_of, parse
from tests.unit.controller.nodes import pod

from mesh.wire.workload_pb2 import AppProtocol  # isort: skip


def service(**spec: Any) -> Service:
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"}, "spec": spec}
    made = parse(document, Kind.SERVICE)
    assert isinstance(made, Service)
    return made


def parsed_pod(**metadata: Any) -> Pod:
    document = pod("p", "10.0.0.1")
    document["metadata"].update(metadata)
    made = parse(document, Kind.POD)
    assert isinstance(made, Pod)
    return made


def test_a_kind_of_another_group_is_another_kind() -> None:
    assert kind_of({"apiVersion": "v1", "kind": "Service"}) is Kind.SERVICE
    assert kind_of({"apiVersion": "serving.knative.dev/v1", "kind": "Service"}) is None
    assert kind_of({"apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication"}) is not None
    assert kind_of({"apiVersion": "apps/v1", "kind": "Deployment"}) is None


def test_a_policy_of_a_version_that_nobody_has_defined_is_a_fault() -> None:
    check_version({"apiVersion": "security.istio.io/v1beta1"}, Kind.AUTHORIZATION_POLICY)
    check_version({"apiVersion": "gateway.networking.k8s.io/v1alpha2"}, Kind.GATEWAY)
    for kind in (Kind.AUTHORIZATION_POLICY, Kind.PEER_AUTHENTICATION):
        with pytest.raises(ObjectFault, match="apiVersion: 'v2' is no version of"):
            check_version({"apiVersion": "security.istio.io/v2"}, kind)


def test_an_object_without_a_namespace_is_in_default() -> None:
    assert key_of({"metadata": {"name": "x"}}, Kind.POD) == "default/x"
    assert key_of({"metadata": {"name": "x"}}, Kind.NODE) == "x"


@pytest.mark.parametrize("name", ["", None, "a/b", "../x", "a b", 7, "-x", "x" * 300])
def test_a_name_that_is_none_is_a_fault(name: Any) -> None:
    with pytest.raises(ObjectFault, match=r"metadata\.name"):
        key_of({"metadata": {"name": name}}, Kind.POD)


@pytest.mark.parametrize(
    ("port", "target", "target_name"),
    [
        ({"port": 80}, 80, ""),
        ({"port": 80, "targetPort": 8080}, 8080, ""),
        ({"port": 80, "targetPort": "8080"}, 8080, ""),
        ({"port": 80, "targetPort": "http"}, 0, "http"),
        ({"port": 80, "targetPort": 0}, 80, ""),
    ],
)
def test_target_ports(port: dict[str, Any], target: int, target_name: str) -> None:
    (found,) = service(ports=[port]).ports
    assert (found.target, found.target_name) == (target, target_name)


@pytest.mark.parametrize(
    ("spec", "families"),
    [
        ({}, (4,)),
        ({"clusterIP": "fd00::1"}, (6,)),
        ({"clusterIPs": ["10.0.0.1", "fd00::1"]}, (4, 6)),
        ({"clusterIP": "None", "ipFamilies": ["IPv6"]}, (6,)),
        ({"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack"}, (4, 6)),
    ],
)
def test_ip_families(spec: dict[str, Any], families: tuple[int, ...]) -> None:
    assert service(**spec).families == families


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ({"port": 80, "name": "http"}, AppProtocol.HTTP11),
        ({"port": 80, "name": "http2-api"}, AppProtocol.HTTP2),
        ({"port": 80, "name": "grpc-web"}, AppProtocol.UNKNOWN),
        ({"port": 80, "name": "grpc-web-api"}, AppProtocol.UNKNOWN),
        ({"port": 80, "name": "x", "appProtocol": "grpc"}, AppProtocol.GRPC),
        ({"port": 80, "name": "mongo"}, AppProtocol.UNKNOWN),
        ({"port": 3306, "name": "mysql"}, AppProtocol.UNKNOWN),
        ({"port": 3306, "name": "db"}, AppProtocol.TCP),
        ({"port": 80, "name": "x", "appProtocol": "kubernetes.io/h2c"}, AppProtocol.HTTP2),
        ({"port": 80, "name": "http", "appProtocol": "tcp"}, AppProtocol.TCP),
        ({"port": 3306}, AppProtocol.TCP),
        ({"port": 80, "name": "HTTPS"}, AppProtocol.TLS),
        ({"port": 80, "name": "httpx"}, AppProtocol.UNKNOWN),
        ({"port": 80, "name": "http", "protocol": "UDP"}, AppProtocol.UNKNOWN),
    ],
)
def test_app_protocols(port: dict[str, Any], expected: AppProtocol) -> None:
    assert service(ports=[port]).ports[0].app_protocol == expected


def test_traffic_distribution() -> None:
    assert service(trafficDistribution="PreferClose").distribution is Distribution.SAME_ZONE
    assert service(trafficDistribution="PreferSameNode").distribution is Distribution.SAME_NODE
    assert service(trafficDistribution="SomethingNewer").distribution is Distribution.ANY
    assert service().distribution is None


def test_named_ports_of_a_sidecar_that_starts_first_are_the_pods_ports_too() -> None:
    document = pod("p", "10.0.0.1")
    proxy = {"name": "proxy", "ports": [{"name": "http", "containerPort": 1}, {"name": "side", "containerPort": 2}]}
    setup = {"name": "setup", "ports": [{"name": "once", "containerPort": 3}]}
    document["spec"]["containers"] = [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}]
    document["spec"]["initContainers"] = [{**proxy, "restartPolicy": "Always"}, setup]
    made = parse(document, Kind.POD)
    assert isinstance(made, Pod)
    assert dict(reversed(made.ports)) == {"http": 8080, "side": 2}


def owner(kind: str, name: str, **more: Any) -> dict[str, Any]:
    reference = {"kind": kind, "apiVersion": "v1", "name": name, "controller": True}
    return {"generateName": f"{name}-", "ownerReferences": [reference], **more}


def test_a_workload_is_named_after_what_made_it() -> None:
    assert parsed_pod().workload_name == "p"
    assert parsed_pod(**owner("ReplicaSet", "web-6f7", labels={"pod-template-hash": "6f7"})).workload_name == "web"
    assert parsed_pod(**owner("ReplicaSet", "web-6f7", labels={"pod-template-hash": "7"})).workload_name == "web-6f7"
    rollout = {"rollouts-pod-template-hash": "6f7"}
    assert parsed_pod(**owner("ReplicaSet", "web-6f7", labels=rollout)).workload_name == "web"
    assert parsed_pod(**owner("Job", "nightly-27812345")).workload_name == "nightly"
    configured = {"deploymentconfig": "old"}
    assert parsed_pod(**owner("ReplicationController", "old-1", labels=configured)).workload_name == "old"
    assert parsed_pod(**owner("ReplicationController", "old-1")).workload_name == "old-1"
    said = {"service.istio.io/workload-name": "mine", "pod-template-hash": "6f7"}
    assert parsed_pod(**owner("ReplicaSet", "web-6f7", labels=said)).workload_name == "mine"
    assert parsed_pod(**owner("StatefulSet", "db")).workload_name == "db"


def test_a_terminating_pod_is_marked() -> None:
    assert parsed_pod(deletionTimestamp="2026-01-01T00:00:00Z").is_terminating


def test_endpoints_of_no_pod_and_of_a_pod() -> None:
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "e", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": "a", "port": 80}, {"name": "u", "port": 53, "protocol": "UDP"}],
        "endpoints": [
            {"addresses": ["192.0.2.1"], "conditions": {"ready": False}},
            {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "p"}},
        ],
    }
    made = parse(document, Kind.ENDPOINT_SLICE)
    assert isinstance(made, EndpointSlice)
    assert made.service == "n/s"
    assert made.ports == (("a", 80),)
    assert [(one.address, one.is_ready, one.pod) for one in made.endpoints] == [
        ("192.0.2.1", False, ""),
        ("10.0.0.1", True, "n/p"),
    ]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"spec": []}, "spec"),
        ({"spec": {"nodeName": 7}}, "spec.nodeName"),
        ({"metadata": {"name": "p", "labels": {"a": 1}}}, "metadata.labels.a"),
        ({"status": {"podIPs": [{"ip": "10.0.0.999"}]}}, "status.podIPs[0].ip"),
        ({"status": {"conditions": {}}}, "status.conditions"),
        (
            {"spec": {"containers": [{"ports": [{"name": "x", "containerPort": 70000}]}]}},
            "spec.containers[0].ports[0].containerPort",
        ),
    ],
)
def test_a_fault_names_its_field(change: dict[str, Any], path: str) -> None:
    with pytest.raises(ObjectFault) as caught:
        parse({**pod("p", "10.0.0.1"), **change}, Kind.POD)
    assert caught.value.path == path
