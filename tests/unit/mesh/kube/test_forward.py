from pathlib import Path

import pytest

from mesh.kube.forward import Forwarder, kubeconfig_of_user
from mesh.kube.transport import Misconfigured


def test_the_kubeconfig_is_the_one_that_kubectl_would_take(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert kubeconfig_of_user(None, {}) is None
    own = tmp_path / ".kube" / "config"
    own.parent.mkdir()
    own.write_text("")
    other = tmp_path / "other"
    other.write_text("")
    assert kubeconfig_of_user(None, {}) == own
    assert kubeconfig_of_user(None, {"KUBECONFIG": f"/nowhere:{other}"}) == other
    assert kubeconfig_of_user(None, {"KUBECONFIG": "/nowhere"}) is None
    assert kubeconfig_of_user(own, {"KUBECONFIG": str(other)}) == own


def test_a_kubeconfig_that_says_nothing_is_named(tmp_path):
    path = tmp_path / "config"
    path.write_text("kind: Config\n")
    with pytest.raises(Misconfigured, match=str(path)):
        Forwarder(path)
