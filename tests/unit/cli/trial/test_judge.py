import pytest

from cli.trial.judge import BadPolicies, Node, read
from controller.translate.facts import Mesh
from tests.unit.cli.trial.cases import ALLOW_CLIENT, DENY_ALL, HEAD, flow

MESH = Mesh()


def existing(name="p", action="Deny", scope="Namespace"):
    return {
        "name": name,
        "namespace": "shop",
        "scope": scope,
        "action": action,
        "dryRun": False,
        "rules": [[[]]],
        "fault": "",
    }


def judged(text, flow, *policies, selected=(), labels=None, mesh=MESH):
    dump = {"policies": list(policies), "workloads": [{"uid": "u", "authorizationPolicies": list(selected)}]}
    return Node(dump).judged(flow, read(text, "file.yaml", mesh), labels, mesh.root_namespace)


def test_a_policy_that_denies_would_have_refused():
    found = judged(DENY_ALL, flow())
    assert found.is_changed and not found.allowed
    assert "shop/p" in found.because


def test_a_policy_that_allows_somebody_refuses_everybody_else():
    assert not judged(ALLOW_CLIENT, flow()).is_changed
    assert judged(ALLOW_CLIENT, flow(identity="spiffe://cluster.local/ns/shop/sa/other")).is_changed
    assert judged(ALLOW_CLIENT, flow(identity=None)).is_changed


def test_the_policy_of_its_name_is_replaced():
    found = judged(ALLOW_CLIENT, flow(allowed=False), existing())
    assert found.is_changed and found.allowed


def test_other_policies_stay_in_force():
    assert not judged(ALLOW_CLIENT, flow(allowed=False), existing("other")).allowed


def test_a_policy_that_selects_other_pods_says_nothing():
    chosen = existing("other", scope="WorkloadSelector")
    assert judged(ALLOW_CLIENT, flow(), chosen).allowed
    assert not judged(ALLOW_CLIENT, flow(), chosen, selected=["shop/other"]).allowed


def test_a_selector_of_the_file_looks_at_the_pods_labels():
    text = DENY_ALL.replace("spec: {", "spec: {selector: {matchLabels: {app: web}}, ")
    assert not judged(text, flow(), labels={"app": "web"}).allowed
    assert judged(text, flow(), labels={"app": "db"}).allowed
    with pytest.raises(BadPolicies, match="labels are not known"):
        judged(text, flow())


def test_a_policy_of_another_namespace_is_for_others_unless_it_is_the_root():
    text = DENY_ALL.replace("namespace: shop", "namespace: culvert-system")
    assert not judged(text, flow()).allowed
    assert judged(text, flow(), mesh=Mesh(root_namespace="istio-system")).allowed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a}\n", "only AuthorizationPolicies"),
        ("", "holds no AuthorizationPolicy"),
        (HEAD + "spec: {rules: 3}\n", "rules"),
        (HEAD + "spec: {ruels: []}\n", "ruels"),
    ],
)
def test_a_file_that_cannot_be_tried_is_refused_with_the_reason(text, said):
    with pytest.raises(BadPolicies, match=said):
        read(text, "file.yaml", MESH)


def test_what_only_a_waypoint_can_check_is_remarked():
    text = HEAD + "spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n"
    (tried,) = read(text, "file.yaml", MESH)
    assert "waypoint" in tried.remark
