import pytest

from lab.podspec import parse_pod
from lab.volumes import bind_sources


def spec(volume, path="/data"):
    manifest = {
        "metadata": {"name": "a"},
        "spec": {
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": path}]}],
            "volumes": [{"name": "v", **volume}],
        },
    }
    return parse_pod(manifest, {})


def test_config_map_becomes_files(tmp_path):
    found = bind_sources(spec({"configMap": {"name": "m"}}), tmp_path, "shop", lambda _: {"data": {"a.conf": "x"}})
    assert found == [(str(tmp_path / "v"), "/data")]
    assert (tmp_path / "v" / "a.conf").read_text() == "x"


def test_missing_config_map_is_named(tmp_path):
    with pytest.raises(OSError, match="shop/m"):
        bind_sources(spec({"configMap": {"name": "m"}}), tmp_path, "shop", lambda _: None)


def test_key_of_a_config_map_cannot_leave_its_directory(tmp_path):
    with pytest.raises(OSError, match="cannot name a file"):
        bind_sources(spec({"configMap": {"name": "m"}}), tmp_path, "shop", lambda _: {"data": {"../x": ""}})


def test_missing_host_path_is_named(tmp_path):
    with pytest.raises(OSError, match="/nowhere"):
        bind_sources(spec({"hostPath": {"path": "/nowhere"}}), tmp_path, "shop", lambda _: None)
