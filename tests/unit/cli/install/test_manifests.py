import json

from cli.install import manifests
from cli.install.chart import Chart


def test_the_manifests_in_the_tree_are_those_of_the_chart():
    assert manifests.main(["--check"]) == 0


def test_a_manifest_that_was_edited_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manifests, "PLATFORMS", ("generic",))
    monkeypatch.setattr(manifests, "manifest", lambda chart, platform: "other\n")
    assert manifests.main(["--check"]) == 1
    assert "generic.yaml" in capsys.readouterr().err


def test_the_schema_knows_the_settings_and_nothing_else():
    found = json.loads(manifests.schema(Chart()))
    assert found["additionalProperties"] is False
    logs = found["properties"]["logs"]
    assert set(logs["properties"]) == {"level", "format"} and logs["additionalProperties"] is False
    assert found["properties"]["controller"]["properties"]["nodeSelector"] == {"type": "object"}
    assert found["properties"]["istioLabels"] == {"type": "boolean"}
