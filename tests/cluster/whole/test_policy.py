"""Policies as an administrator has them: tried, applied, reported on; and kubelet, which has no identity."""

import json
from pathlib import Path

import pytest

from tests.cluster.whole.objects import policy
from tests.cluster.whole.stage import CLIENT, WEB, Whole

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_a_policy_is_tried_before_and_enforced_after_it_is_applied(mesh: Whole, tmp_path: Path) -> None:
    mesh.status_of(WEB)
    nobody = policy("AuthorizationPolicy", "nobody", action="DENY", rules=[{}])
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(nobody))
    done = mesh.culvert("policy", "test", str(path))
    assert done.returncode == 1 and "shop/web:8080" in done.stdout, done.stderr
    assert mesh.status_of(WEB) == "200"
    with mesh.applied(nobody):
        mesh.until("the policy", lambda: mesh.status_of(WEB) != "200")
    mesh.until("its end", lambda: mesh.status_of(WEB) == "200")


def test_one_service_account_is_allowed_and_another_refused_in_the_name_of_the_policy(mesh: Whole) -> None:
    source = {"source": {"principals": [f"cluster.local/ns/shop/sa/{CLIENT}"]}}
    selector = {"matchLabels": {"app": "web"}}
    with mesh.applied(policy("AuthorizationPolicy", "only-client", selector=selector, rules=[{"from": [source]}])):
        mesh.until("the policy", lambda: mesh.status_of(WEB, "other") != "200")
        assert mesh.status_of(WEB) == "200"
        mesh.until("the access log's line", lambda: refusals(mesh, "other"), 5)
        assert "only-client" in refusals(mesh, "other")[-1]["policy"]
    mesh.until("its end", lambda: mesh.status_of(WEB, "other") == "200")


def refusals(mesh: Whole, workload: str) -> list[dict[str, str]]:
    lines = mesh.access_log(mesh.place.nodes[0])
    return [one for one in lines if one["reason"] == "policy_denied" and one.get("src.workload") == workload]


def test_under_strict_kubelets_probes_pass_and_nobody_else_without_an_identity(mesh: Whole) -> None:
    direct = f"http://{mesh.pod('web')['status']['podIP']}:8080/"
    assert mesh.status_of(direct, "outsider", "legacy") == "200"
    before = mesh.pod("web")
    complaints = len(mesh.warnings("web"))
    with mesh.applied(policy("PeerAuthentication", "strict", mtls={"mode": "STRICT"})):
        mesh.until("the outsider's refusal", lambda: mesh.status_of(direct, "outsider", "legacy") != "200")
        mesh.until("the access log's line", lambda: refusals(mesh, "outsider"), 5)
        assert "strict" in refusals(mesh, "outsider")[-1]["policy"]
        seen = probes(mesh)
        mesh.until("five probes, one each second", lambda: probes(mesh) >= seen + 5, 30)
        assert mesh.status_of(direct, "outsider", "legacy") != "200"
        assert mesh.status_of(direct) == mesh.status_of(WEB) == "200"
        after = mesh.pod("web")
    assert ready_since(before) == ready_since(after), "it was ready all the time"
    assert len(mesh.warnings("web")) == complaints
    mesh.until("its end", lambda: mesh.status_of(direct, "outsider", "legacy") == "200")


def probes(mesh: Whole) -> int:
    """How many of kubelet's own requests nginx has answered."""
    return mesh.cluster.kubectl("logs", "-n", "shop", "web").count("kube-probe/")


def ready_since(pod: dict[str, object]) -> object:
    conditions = {one["type"]: one for one in pod["status"]["conditions"]}  # type: ignore[index]
    assert conditions["Ready"]["status"] == "True"
    return conditions["Ready"]["lastTransitionTime"]
