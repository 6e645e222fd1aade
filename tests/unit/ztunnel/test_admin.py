import json

import pytest

from bpf.layout import Direction
from mesh.identity import Identity
from mesh.wire import authorization_pb2 as security
from tests.support.mesh import event
from tests.support.pki import Authority
from tests.unit.ztunnel.mesh_builder import Lab, authorization, service, workload
from ztunnel.admin.dump import dump
from ztunnel.admin.explain import explain
from ztunnel.config import Config
from ztunnel.connections import Names
from ztunnel.identity.svid import Svid
from ztunnel.inpod.pods import Pod, PodInfo

WEB = "shop/web.shop"


def lab() -> Lab:
    rule = security.Rule(clauses=[security.Clause(matches=[security.Match(destination_ports=[9090])])])
    return Lab(
        workload("client", "10.0.0.1", node="node-a"),
        workload("web-1", "10.0.1.1", services={WEB: {80: 8080}}),
        service("web", "10.96.0.1", ports={80: 8080}),
        authorization("no-9090", rule, action=security.Action.DENY),
    )


def test_explain_names_every_step_of_a_route() -> None:
    found = explain(lab().store, "shop/client", "web.shop:80")
    assert found["path"] == "hbone"
    assert found["allowed"] is True
    assert found["endpoint"] == "workload shop/web-1"
    text = " ".join(found["because"])
    assert "VIP of service shop/web.shop" in text
    assert "spiffe://cluster.local/ns/shop/sa/" in text


def test_explain_names_the_policy_that_refuses() -> None:
    found = explain(lab().store, "10.0.0.1", "10.0.1.1:9090")
    assert found["allowed"] is False
    assert found["policy"] == "shop/no-9090"


def test_explain_says_why_a_route_is_refused() -> None:
    found = explain(lab().store, "shop/client", "10.96.0.1:81")
    assert found["allowed"] is False
    assert found["reason"] == "unknown_port"


@pytest.mark.parametrize(
    ("source", "destination", "says"),
    [
        ("nobody", "10.0.1.1:80", "neither namespace/pod nor an address"),
        ("shop/nobody", "10.0.1.1:80", "not a workload"),
        ("shop/client", "10.0.1.1", "not host:port"),
        ("shop/client", "10.0.1.1:99999", "not host:port"),
        ("shop/client", "nothing.shop:80", "no service"),
    ],
)
def test_explain_says_what_is_wrong_with_a_question(source: str, destination: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        explain(lab().store, source, destination)


def test_a_dump_has_the_keys_that_istioctl_reads_and_no_key() -> None:
    stage = lab()
    authority = Authority()
    web = Identity("cluster.local", "shop", "web")
    chain, key = authority.credential(str(web))
    held = Svid(web, chain, authority.pem, key, authority.now, authority.now)
    pod = Pod(3, PodInfo("uid-1", "shop", "client", "client"), web, "Kubernetes//Pod/shop/client", -1, (0, 0), 5)
    connection = event(pod=3, direction=Direction.OUTBOUND)
    config = Config.load(["--node=n", "--runtime=/x", "--controller=c:15012"], {})
    other = Identity("cluster.local", "shop", "other")
    certificates = {web: (held, ""), other: (None, "CA answered UNAVAILABLE")}
    found = dump(config, stage.store, certificates, [pod], [connection], Names(stage.store))
    text = json.dumps(found)
    assert "PRIVATE KEY" not in text
    assert held.key_pem.splitlines()[1] not in text
    entry = next(item for item in found["workloads"] if item["name"] == "web-1")
    assert entry["workloadIps"] == ["10.0.1.1"]
    assert entry["protocol"] == "HBONE"
    assert found["services"][0]["vips"] == ["/10.96.0.1"]
    assert found["services"][0]["endpoints"]["Kubernetes//Pod/shop/web-1"]["port"] == {"80": 8080}
    assert found["policies"][0]["rules"] == [[[{"destinationPorts": [9090]}]]]
    states = {item["identity"]: item["state"] for item in found["certificates"]}
    assert states == {str(web): "Available", str(other): "Unavailable: CA answered UNAVAILABLE"}
    shown = found["workloadState"]["uid-1"]
    assert shown["info"] == {"name": "client", "namespace": "shop", "serviceAccount": "client"}
    assert shown["connections"]["outbound"][0]["protocol"] == "HBONE"
