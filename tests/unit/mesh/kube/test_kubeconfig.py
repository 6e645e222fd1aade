import json
import logging
from pathlib import Path

import pytest

from mesh.kube.errors import Misconfigured
from mesh.kube.kubeconfig import Kubeconfig, configuration, of_user


def document(host, *, name="default", current="", user=None):
    """A kubeconfig of one cluster."""
    return {
        "current-context": current,
        "clusters": [{"name": name, "cluster": {"server": host}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "users": [{"name": name, "user": user or {"token": "t"}}],
    }


def write(path, found):
    path.write_text(json.dumps(found))
    return path


def host_of(*files, context=""):
    return configuration(Kubeconfig(files, context)).host


def test_the_files_are_those_that_kubectl_would_take(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert of_user(None, "", {}) is None
    own = tmp_path / ".kube" / "config"
    own.parent.mkdir()
    own.write_text("")
    other, third = tmp_path / "other", tmp_path / "third"
    other.write_text("")
    third.write_text("")
    assert of_user(None, "", {}) == Kubeconfig((own,))
    assert of_user(None, "", {"KUBECONFIG": ""}) == Kubeconfig((own,))
    assert of_user(None, "c", {"KUBECONFIG": f"/nowhere:{other}:{third}"}) == Kubeconfig((other, third), "c")
    assert of_user(own, "", {"KUBECONFIG": str(other)}) == Kubeconfig((own,))


def test_a_variable_that_names_nothing_is_said_and_nothing_else_taken():
    with pytest.raises(Misconfigured, match="KUBECONFIG is /nowhere:/neither"):
        of_user(None, "", {"KUBECONFIG": "/nowhere:/neither"})


def test_of_several_files_the_first_current_context_counts_and_any_may_be_named(tmp_path):
    one = write(tmp_path / "one", document("https://one", name="a", current="a"))
    two = write(tmp_path / "two", document("https://two", name="b", current="b"))
    empty = tmp_path / "empty"
    empty.write_text("")
    assert host_of(one, two) == "https://one"
    assert host_of(empty, two, one) == "https://two"
    assert host_of(one, two, context="b") == "https://two"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "while parsing"),
        ("just words", "is no mapping"),
        ("kind: Config", "no current context"),
        (json.dumps(document("https://x", current="gone")), "no context 'gone'; known: default"),
        (json.dumps(document("https://x")), "--context NAME; known: default"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_file(tmp_path, text, said):
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(Misconfigured, match=str(path)) as found:
        host_of(path)
    assert said in str(found.value)


def test_a_plug_in_that_gives_no_credentials_is_a_fault_and_nobody_is_asked_as_nobody(tmp_path, caplog):
    plugin = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "no-such-plugin",
            "interactiveMode": "Never",
        }
    }
    path = write(tmp_path / "config", document("https://x", current="default", user=plugin))
    with pytest.raises(Misconfigured, match=r"no credentials: .+no-such-plugin"):
        host_of(path)
    assert not [one for one in logging.getLogger().handlers if type(one).__name__ == "Collector"]
