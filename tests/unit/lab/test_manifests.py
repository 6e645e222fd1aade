import pytest

from lab import manifests
from lab.manifests import Ref

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {containers: [{name: c}]}\n"


def names_of(found):
    return [manifests.ref_of(item) for item in found]


def test_bad_document_costs_only_itself():
    text = f"{POD}---\nkind: [unclosed\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n"
    found, faults = manifests.parse(text, "x.yaml")
    assert names_of(found) == [Ref("Pod", "shop", "a"), Ref("Namespace", "", "shop")]
    assert len(faults) == 1
    assert faults[0].where == "x.yaml:6"
    assert "not YAML" in faults[0].what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("just text", "mapping"),
        ("{apiVersion: v1, metadata: {name: a}}", "kind"),
        ("{kind: Pod, metadata: {name: a}}", "apiVersion"),
        ("{apiVersion: v1, kind: Pod}", "metadata.name"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: 7}}", "quote"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: A_b}}", "lower-case"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: ../../etc/x}}", "lower-case"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: ../x}}", "lower-case"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {x: true}}}", "labels"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: [x]}}", "annotations"),
    ],
)
def test_what_is_no_object_is_named(text, what):
    found, faults = manifests.parse(text, "x")
    assert not found
    assert what in faults[0].what


def test_a_key_that_stands_twice_costs_its_document_and_times_stay_text():
    found, faults = manifests.parse("{apiVersion: v1, kind: Pod, kind: Node, metadata: {name: a}}", "x")
    assert not found
    assert "'kind' stands twice" in faults[0].what
    text = "{apiVersion: v1, kind: Namespace, metadata: {name: a, creationTimestamp: 2026-01-01T00:00:00Z}}"
    ((one,), _) = manifests.parse(text, "x")
    assert one["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"


def test_list_is_taken_apart():
    item = "{apiVersion: v1, kind: Namespace, metadata: {name: %s}}"
    text = f"{{apiVersion: v1, kind: List, items: [{item % 'a'}, {item % 'b'}]}}"
    found, faults = manifests.parse(text, "x")
    assert not faults
    assert [ref.name for ref in names_of(found)] == ["a", "b"]


def test_namespace_defaults_and_cluster_scoped_kinds_have_none():
    found, _ = manifests.parse("{apiVersion: v1, kind: Pod, metadata: {name: a}}", "x")
    assert found[0]["metadata"]["namespace"] == "default"
    found, _ = manifests.parse("{apiVersion: v1, kind: Node, metadata: {name: a, namespace: x}}", "x")
    assert "namespace" not in found[0]["metadata"]


def test_directories_are_read_in_order_and_other_files_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.yml").write_text("{apiVersion: v1, kind: Namespace, metadata: {name: two}}")
    (tmp_path / "a.json").write_text('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one"}}')
    (tmp_path / "README.md").write_text("not: a manifest")
    (tmp_path / ".hidden.yaml").write_text("broken: [")
    found, faults = manifests.read([tmp_path])
    assert not faults
    assert [ref.name for ref in names_of(found)] == ["one", "two"]


def test_empty_documents_are_nothing():
    assert manifests.parse("---\n# only a comment\n---\n\n", "x") == ([], [])


def test_object_that_is_there_twice_is_named_and_the_first_counts(tmp_path):
    (tmp_path / "a.yaml").write_text(f"{POD}---\n{POD.replace('{name: c}', '{name: d}')}")
    (tmp_path / "b.yaml").write_text(POD.replace("namespace: shop", "namespace: other") + "---\n" + POD)
    found, faults = manifests.read([tmp_path])
    assert names_of(found) == [Ref("Pod", "shop", "a"), Ref("Pod", "other", "a")]
    assert found[0]["spec"]["containers"] == [{"name": "c"}]
    assert [fault.where.rpartition("/")[2] for fault in faults] == ["a.yaml:6", "b.yaml:6"]
    assert all("a.yaml:1 already" in fault.what for fault in faults)
