from lab import components
from lab.components import Settings
from lab.nodes import Node
from lab.paths import LabPaths
from lab.plan import NodePlan


def test_settings_survive_the_way_to_the_supervisor():
    settings = Settings(istio_labels=True, ztunnel_args=("--log-level=debug",))
    assert Settings.from_json(settings.to_json()) == settings


def test_components_of_a_node_are_told_its_names_and_its_controller():
    node = Node("demo", "node-1", NodePlan(1), "cv-demo-node-1")
    for command in (components.agent(node, Settings()), components.ztunnel(node, Settings())):
        assert "--node=node-1" in command
        assert "--key=demo-node-1" in command
        assert "--runtime=/run/culvert/demo-node-1" in command
        assert "--controller=172.30.0.1:15012" in command


def test_controller_reads_the_objects_of_its_lab():
    command = components.controller(LabPaths("demo"), Settings())
    assert "--manifests=/run/culvert/labs/demo/manifests" in command
    assert "--istio-labels" not in command
    assert "--metrics-listen=172.30.0.1:15014" in command  # asked by the supervisor and by people, not from loopback


def test_istios_labels_are_honoured_by_controller_and_agents_alike():
    settings, node = Settings(istio_labels=True), Node("demo", "node-1", NodePlan(1), "cv-demo-node-1")
    for command in (components.controller(LabPaths("demo"), settings), components.agent(node, settings)):
        assert "--istio-labels" in command
    assert "--istio-labels" not in components.agent(node, Settings())
