"""One command installs, and a second one changes nothing; pods start captured."""

import json
import sys

import pytest

from tests.cluster.kube.processes import in_namespace
from tests.cluster.whole.stage import CLIENT, SHOP, SYSTEM, WEB, Whole

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_a_cluster_without_an_installation_is_found_fit_for_one(whole: Whole) -> None:
    done = whole.culvert("check", "--pre")
    assert not done.returncode, done.stdout


def test_after_one_command_nothing_is_missing(mesh: Whole) -> None:
    done = mesh.culvert("check")
    assert not done.returncode, done.stdout
    assert not mesh.culvert("status").returncode


def test_a_second_installation_changes_nothing(mesh: Whole) -> None:
    before = mesh.cluster.get("daemonset", "-n", SYSTEM, "culvert-node")["metadata"]["generation"]
    mesh.install()
    after = mesh.cluster.get("daemonset", "-n", SYSTEM, "culvert-node")["metadata"]["generation"]
    assert before == after


def test_pods_start_captured_and_reach_each_other_under_their_service_accounts(mesh: Whole) -> None:
    assert [mesh.capture(pod) for pod in ("web", CLIENT)] == ["enabled", "enabled"]
    assert mesh.status_of(WEB) == "200"
    server = mesh.place.nodes[0]
    mesh.until("a line of the access log", lambda: [line for line in served(mesh) if line["reason"] == "ok"], 5)
    last = [line for line in served(mesh) if line["reason"] == "ok"][-1]
    assert last["src.identity"] == f"spiffe://cluster.local/ns/shop/sa/{CLIENT}", server.name
    assert last["dst.addr"].endswith(":15008")
    done = mesh.culvert("explain", f"{SHOP}/{CLIENT}", "web.shop")
    assert "hbone" in done.stdout and not done.returncode, done.stderr


def served(mesh: Whole) -> list[dict[str, str]]:
    lines = mesh.access_log(mesh.place.nodes[0])
    return [line for line in lines if line["direction"] == "inbound" and line.get("src.workload") == CLIENT]


def test_the_plugin_is_entered_last_and_taken_away_by_the_command(mesh: Whole) -> None:
    node = mesh.place.nodes[0]
    (path,) = node.cni_config.glob("*.conflist")
    assert json.loads(path.read_text())["plugins"][-1]["type"] == "culvert-cni"
    command = [sys.executable, "-m", "daemonset", "remove-cni", "--key", node.name]
    command += ["--cni-conf-dir", str(node.cni_config), "--cni-bin-dir", str(node.cni_plugins)]
    done = in_namespace(node.netns, command, capture_output=True)
    assert "taken out of" in done.stdout, done.stderr
    mesh.until("the agent's repair", lambda: json.loads(path.read_text())["plugins"][-1]["type"] == "culvert-cni", 30)
