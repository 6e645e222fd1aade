"""What `/config_dump` shows of the state, and what it keeps to itself."""

import json
from typing import Any

from bpf.layout import Direction
from mesh.identity import Identity
from mesh.wire import authorization_pb2 as security
from tests.support.mesh import event
from tests.support.pki import Authority
from tests.unit.ztunnel.mesh_builder import Lab, authorization, small_shop, workload
from ztunnel.admin.dump import dump
from ztunnel.config import Config
from ztunnel.connections import Names
from ztunnel.identity.svid import Svid
from ztunnel.inpod.pods import Pod, PodInfo


def test_a_dump_has_the_keys_that_istioctl_reads_and_no_key() -> None:
    stage = small_shop()
    authority = Authority()
    web = Identity("cluster.local", "shop", "web")
    made = authority.issue(str(web))
    held = Svid(web, made.chain, made.roots, made.key, authority.now, authority.now)
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


def dumped(stage: Lab) -> dict[str, Any]:
    config = Config.load(["--node=n", "--runtime=/x", "--controller=c:15012"], {})
    return dump(config, stage.store, {}, [], [], Names(stage.store))


def test_a_policy_that_could_not_be_understood_is_listed_with_what_is_in_force_instead() -> None:
    stage = small_shop()
    stage.put(workload("web-1", "10.0.1.1", authorization_policies=["shop/odd"]))
    stage.put(authorization("odd", scope=security.Scope.WORKLOAD_SELECTOR, action=2))
    shown = dumped(stage)
    reason = "action 2 is not supported"
    assert shown["policiesNotUnderstood"] == [{"name": "shop/odd", "reason": reason, "inForce": "deny all"}]
    assert [item["fault"] for item in shown["policies"]] == ["", reason]
    stage.put(authorization("no-9090", action=2))
    assert dumped(stage)["policiesNotUnderstood"][0]["inForce"] == "the version before"
