"""What is replaced or dies while requests come steadily: none of them fails, and nothing that was changed is lost."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.whole.objects import SLEEP, container, deployment, pod, policy, service
from tests.cluster.whole.stage import SHOP, SYSTEM, WEB, Whole
from tests.cluster.whole.traffic import steady

pytestmark = [pytest.mark.root, pytest.mark.slow]

UPDATES = 20


def test_replacing_every_node_component_fails_no_request(mesh: Whole) -> None:
    before = {one["metadata"]["uid"] for one in mesh.node_pods()}
    with steady(mesh) as traffic:
        mesh.cluster.kubectl("rollout", "restart", "-n", SYSTEM, "daemonset/culvert-node")
        mesh.rolled_out("daemonset/culvert-node")
        mesh.until("the end of the old ones", lambda: not before & {one["metadata"]["uid"] for one in mesh.node_pods()})
        assert len(mesh.node_pods()) == len(mesh.place.nodes)
        traffic.go_on(100)
        traffic.stop()
    assert traffic.bad == []
    assert traffic.good > 200


def test_replacing_an_application_fails_no_request(mesh: Whole) -> None:
    mesh.cluster.apply([service("rolling", 8080), deployment("rolling", "one")])
    mesh.rolled_out("deployment/rolling", SHOP)
    mesh.until("the service's first answer", lambda: mesh.status_of("http://rolling.shop/") == "200")
    with steady(mesh, "http://rolling.shop/") as traffic:
        traffic.go_on()
        mesh.cluster.apply([deployment("rolling", "two")])
        mesh.rolled_out("deployment/rolling", SHOP)
        mesh.until("the end of the first version", lambda: len(replicas(mesh)) == 2)
        traffic.go_on()
        traffic.stop()
    assert traffic.bad == []
    assert traffic.answers.keys() == {"one", "two"}
    assert traffic.last == "two"
    assert {one["spec"]["containers"][0]["env"][0]["value"] for one in replicas(mesh)} == {"two"}
    assert {mesh.capture(one["metadata"]["name"]) for one in replicas(mesh)} == {"enabled"}
    mesh.cluster.kubectl("delete", "deployment,service", "-n", SHOP, "rolling", "--wait=false")


def replicas(mesh: Whole) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mesh.cluster.get("pods", "-n", SHOP, "-l", "app=rolling")["items"]
    return found


def test_a_controller_that_is_killed_while_it_leads_loses_no_request_and_no_update(mesh: Whole) -> None:
    names = [f"update-{number}" for number in range(UPDATES)]
    deny = {"selector": {"matchLabels": {"app": "absent"}}, "action": "DENY", "rules": [{}]}
    with steady(mesh) as traffic:
        traffic.go_on()
        leader = holder(mesh)
        os.kill(process_of(leader.rpartition("_")[0]), signal.SIGKILL)
        for name in names:
            mesh.cluster.apply([policy("AuthorizationPolicy", name, **deny)])
        mesh.cluster.apply([pod("newcomer", mesh.place.nodes[1].name, container("python", SLEEP))])
        mesh.ready("newcomer")
        assert mesh.capture("newcomer") == "enabled", "any controller serves, whoever leads"
        assert mesh.status_of(WEB, "newcomer") == "200"
        mesh.until("another leader", lambda: holder(mesh) not in ("", leader))
        mesh.until("a status on each update", lambda: accepted(mesh) >= set(names))
        for node in mesh.place.nodes:
            known = mesh.culvert("config", "policies", node.name).stdout
            assert not [name for name in names if f"{SHOP}/{name} " not in known], node.name
        traffic.go_on()
        traffic.stop()
    assert traffic.bad == []
    assert traffic.good > 100
    mesh.cluster.kubectl("delete", "authorizationpolicy", "-n", SHOP, *names)
    mesh.rolled_out("deployment/culvert-controller")


def holder(mesh: Whole) -> str:
    """Who leads, as the Lease has it: the name of its pod and something of its own."""
    lease = mesh.cluster.get("lease", "-n", SYSTEM, "culvert-controller")
    return str(lease["spec"].get("holderIdentity") or "")


def process_of(pod: str) -> int:
    """The controller's process in a pod."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            argv = (path / "cmdline").read_bytes().split(b"\0")
            if b"controller" in argv and f"HOSTNAME={pod}\0".encode() in (path / "environ").read_bytes():
                return int(path.name)
    raise LookupError(f"no process of {pod}")


def accepted(mesh: Whole) -> set[str]:
    """Policies that a controller has said something good of."""
    return {
        one["metadata"]["name"]
        for one in mesh.cluster.get("authorizationpolicy", "-n", SHOP)["items"]
        for condition in one.get("status", {}).get("conditions", ())
        if (condition["type"], condition["status"]) == ("Accepted", "True")
    }
