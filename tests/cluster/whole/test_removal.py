"""What is known at the end, and what is left when everything was taken out."""

import tarfile
from pathlib import Path

import pytest

from bpf.paths import BPFFS, RUNTIME, escape
from tests.cluster.whole import kernel
from tests.cluster.whole.stage import SYSTEM, WEB, Whole

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_a_sysdump_has_every_node_and_no_secret(mesh: Whole, tmp_path: Path) -> None:
    done = mesh.culvert("sysdump", "-o", str(tmp_path / "dump.tar.gz"))
    assert not done.returncode, done.stderr
    with tarfile.open(tmp_path / "dump.tar.gz") as archive:
        names = archive.getnames()
        text = b"".join(found.read() for one in archive.getmembers() if (found := archive.extractfile(one)))
    for node in mesh.place.nodes:
        assert f"culvert-sysdump/nodes/{node.name}/ztunnel-config.json" in names
    assert b"PRIVATE KEY" not in text


def test_no_component_was_refused_what_it_asked_of_the_api_server(mesh: Whole) -> None:
    """Rights are as few as work: in whatever has happened until here none was missing."""
    logs = [path for node in mesh.place.nodes for path in (node.state / "pod-logs").glob(f"{SYSTEM}_*/*/*.log")]
    assert len(logs) >= 6, "two controllers, two agents, two ztunnels"
    lines = [line for path in logs for line in path.read_text(errors="replace").splitlines()]
    assert not [line for line in lines if " is forbidden: " in line]


def test_a_node_that_is_away_is_named_and_is_cleaned_when_it_is_back(mesh: Whole) -> None:
    here, away = mesh.place.nodes
    mesh.cluster.nodes[1].stop_kubelet()
    try:
        done = mesh.culvert("uninstall", "--timeout", "100")
    finally:
        mesh.cluster.nodes[1].start_kubelet()
    assert done.returncode == 1
    left = [line for line in done.stdout.splitlines() if line.startswith("left")]
    assert f"node {away.name}: " in left[0] and "does not answer since" in left[0]
    assert "culvert-node-removal: stays" in left[1] and len(left) == 2
    assert not (BPFFS / "culvert" / escape(here.name)).exists()
    mesh.until("the node's own cleaning", lambda: not (RUNTIME / away.name).exists())
    assert not (BPFFS / "culvert" / escape(away.name)).exists()


def test_nothing_is_left_after_it_was_taken_out(mesh: Whole, links_before: set[int]) -> None:
    done = mesh.culvert("uninstall")
    assert not done.returncode, done.stdout + done.stderr
    for node in mesh.place.nodes:
        assert not (BPFFS / "culvert" / escape(node.name)).exists()
        assert not (RUNTIME / node.name).exists()
        assert not list(node.cni_plugins.glob("culvert*"))
    mesh.until("the end of our links", lambda: not kernel.links() - links_before, 5)
    assert not any("culvert" in plugin["type"] for one in mesh.conflists() for plugin in one["plugins"])
    text = mesh.cluster.kubectl("get", "crd,ns,clusterrole,clusterrolebinding", "-o", "name")
    assert "culvert" not in text and "istio" not in text
    metadata = [one["metadata"] for kind in ("pods", "namespaces") for one in mesh.cluster.get(kind, "-A")["items"]]
    marks = [mark for one in metadata for mark in (*one.get("labels", ()), *one.get("annotations", ()))]
    assert marks and not [mark for mark in marks if "culvert" in mark]
    assert mesh.status_of(WEB) == "200"
