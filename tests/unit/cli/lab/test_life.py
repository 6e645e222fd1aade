import pytest
from click import UsageError

from cli.lab import life
from lab import manifests


def objects(text):
    found, faults = manifests.parse(text, "x")
    assert not faults
    return found


def names(found):
    return [item["metadata"]["name"] for item in found]


POD = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: far}}"
NODE = "{apiVersion: v1, kind: Node, metadata: {name: one, labels: {zone: z}}}"


def test_node_objects_are_the_nodes():
    assert names(life._nodes(objects(NODE), None)) == ["one"]


def test_nodes_that_pods_name_are_made_and_two_at_least():
    assert names(life._nodes(objects(POD), None)) == ["far", "node-1"]
    assert names(life._nodes([], None)) == ["node-1", "node-2"]


def test_number_or_names_may_be_asked_for_and_given_nodes_keep_their_labels():
    assert names(life._nodes([], "3")) == ["node-1", "node-2", "node-3"]
    found = life._nodes(objects(NODE), "one,two")
    assert names(found) == ["one", "two"]
    assert found[0]["metadata"]["labels"] == {"zone": "z"}


@pytest.mark.parametrize("asked", ["0", "a_b", ","])
def test_impossible_nodes_are_wrong_usage(asked):
    with pytest.raises(UsageError):
        life._nodes([], asked)
