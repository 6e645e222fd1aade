import pytest

from lab.nodes import Node
from lab.plan import NodePlan
from lab.pods import PodIdentity
from lab.podspec import parse_pod
from lab.span.machines import Machines
from lab.span.remote import RemotePod

NODE = Node("t", "node-b", NodePlan(2), "", is_local=False)
IDENTITY = PodIdentity("shop", "web", "u", NODE, ("10.244.2.2", "fd00:244:0:2::2"), "l")
MANIFEST = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c"}]}}
STATUS = {
    "phase": "Running",
    "podIP": "192.0.2.66",
    "podIPs": [{"ip": "192.0.2.66"}],
    "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [],
}


@pytest.fixture
def machine():
    return Machines().of("node-b")


@pytest.fixture
def pod(machine):
    return RemotePod(IDENTITY, parse_pod(MANIFEST, {}), machine, lambda: None)


def told(machine):
    mesh = {"asked": True, "state": "captured", "reason": ""}
    machine.join("one", "192.0.2.2")
    machine.take_report(
        {"seen": 1, "components": {}, "pods": {"u": {"status": STATUS, "why": "is ready", "mesh": mesh}}}
    )


def is_ready(pod):
    return [c["status"] for c in pod.status()["conditions"] if c["type"] == "Ready"] == ["True"]


def test_pod_of_a_machine_that_never_joined_is_pending_and_says_why(pod):
    assert pod.status()["phase"] == "Pending"
    assert not is_ready(pod)
    assert pod.why_not_ready() == "the machine of node-b is away"


def test_status_is_its_machines_but_its_addresses_are_the_homes(pod, machine):
    told(machine)
    assert is_ready(pod)
    assert pod.status()["podIP"] == "10.244.2.2"
    assert pod.mesh_state()["state"] == "captured"
    assert pod.why_not_ready() == "is ready"


def test_pod_is_not_ready_while_its_machine_is_not_heard(pod, machine):
    told(machine)
    machine.leave()
    assert pod.status()["phase"] == "Running"
    assert not is_ready(pod)
