import pytest

from controller.sources.documents import read_manifest

POLICY = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"
JSON = '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}%s}'


def test_a_key_that_stands_twice_is_a_fault_as_one_of_them_would_be_lost() -> None:
    manifest = read_manifest(f"{POLICY}spec: {{action: DENY, rules: [], action: ALLOW}}\n", "f.yaml")
    assert not manifest.objects
    assert "'action' stands twice" in str(manifest.faults[0])
    manifest = read_manifest(JSON % ', "kind": "Node"', "f.json")
    assert not manifest.objects
    assert "'kind' stands twice" in str(manifest.faults[0])


@pytest.mark.parametrize(
    "text",
    [
        f"{POLICY}spec: {{<<: {{action: DENY, rules: []}}, action: ALLOW}}\n",  # what a merge brings may be overridden
        f"{POLICY}spec: {{<<: [{{action: DENY}}, {{action: ALLOW}}]}}\n",
        f"{POLICY}spec: {{rules: [{{from: [{{source: {{}}}}]}}, {{from: [{{source: {{}}}}]}}]}}\n",
    ],
)
def test_keys_of_different_mappings_are_different(text: str) -> None:
    assert len(read_manifest(text, "f.yaml").objects) == 1


def test_places_name_file_and_document() -> None:
    other = POLICY.replace("name: p", "name: q")
    listed = '{"apiVersion": "v1", "kind": "List", "items": [%s]}' % (JSON % "")
    assert list(read_manifest(f"{POLICY}---\n{other}", "f.yaml").places.values()) == ["f.yaml:1", "f.yaml:4"]
    assert list(read_manifest(listed, "f.json").places.values()) == ["f.json items[0]"]
    unknown = "apiVersion: apps/v1\nkind: Deployment\n"
    assert read_manifest(f"{POLICY}---\n{unknown}", "f.yaml").unknown_kinds == {"f.yaml:4": "apps/v1 Deployment"}
