import pytest

from cli.trial.judge import BadPolicies, LabelsUnknown, Node, read, translated
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
    tried = [translated(one, mesh) for one in read(text, "file.yaml")]
    return Node(dump).judged(flow, tried, labels, mesh.root_namespace)


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
    with pytest.raises(LabelsUnknown, match="labels are not known"):
        judged(text, flow())


def test_a_policy_of_another_namespace_is_for_others_unless_it_is_the_root():
    text = DENY_ALL.replace("namespace: shop", "namespace: culvert-system")
    assert not judged(text, flow()).allowed
    assert judged(text, flow(), mesh=Mesh(root_namespace="istio-system")).allowed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f.yaml: holds no AuthorizationPolicy"),
        ("# nothing\n---\n", "f.yaml: holds no AuthorizationPolicy"),
        ("3\n", "f.yaml: must be a mapping"),
        ("- a\n", "f.yaml: must be a mapping"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a}\n", "f.yaml: kind: 'Pod' cannot be tried"),
        (HEAD.replace("kind: Auth", "kind: auth"), "f.yaml: kind: 'security.istio.io/v1 authorizationPolicy' cannot"),
        (HEAD.replace("security", "policy"), "f.yaml: kind: 'policy.istio.io/v1 AuthorizationPolicy' cannot be tried"),
        (
            HEAD.replace("io/v1", "io/v99"),
            "f.yaml: AuthorizationPolicy shop/p: apiVersion: 'v99' is no version of security.istio.io",
        ),
        (HEAD.replace("apiVersion", "apiversion"), "f.yaml: apiVersion: is missing"),
        ("apiVersion: v1\nkind: List\nitems: [3]\n", "f.yaml items[0]: must be a mapping"),
        ("apiVersion: v1\nkind: List\nitems: []\n", "f.yaml: holds no AuthorizationPolicy"),
        (HEAD + "spec: {rules: 3}\n", "f.yaml: AuthorizationPolicy shop/p: spec.rules: must be a list"),
        (HEAD + "spec: {ruels: []}\n", "f.yaml: AuthorizationPolicy shop/p: spec.ruels: "),
        (
            f"{DENY_ALL}---\n{HEAD}spec: {{action: DENNY}}\n",
            "f.yaml:5: AuthorizationPolicy shop/p: spec.action: ",
        ),
        (f"{DENY_ALL}---\n{DENY_ALL}", "f.yaml:5: AuthorizationPolicy shop/p: stands earlier in this file"),
        (f"{DENY_ALL}---\nspec: [\n", "f.yaml:5: while parsing"),
        (f"{DENY_ALL}---\nkind: Pod\napiVersion: v1\nmetadata: {{name: a}}\n", "f.yaml:5: kind: 'Pod' cannot be tried"),
    ],
)
def test_a_file_that_cannot_be_tried_is_refused_with_file_document_and_field(text, said):
    with pytest.raises(BadPolicies) as raised:
        read(text, "f.yaml")
    assert str(raised.value).startswith(said)


def test_every_fault_of_a_file_is_told():
    text = f"{HEAD}spec: {{ruels: []}}\n---\nkind: Pod\napiVersion: v1\nmetadata: {{name: a}}\n---\n]"
    with pytest.raises(BadPolicies) as raised:
        read(text, "f.yaml")
    told = [line.partition(" ")[0] for line in str(raised.value).splitlines()]
    assert sorted(told) == ["f.yaml:1:", "f.yaml:5:", "f.yaml:9:"]


def test_several_policies_of_a_file_and_of_a_list_are_read():
    text = f"{DENY_ALL}---\n{DENY_ALL.replace('name: p', 'name: q')}"
    assert [one.name for one in read(text, "f.yaml")] == ["p", "q"]
    listed = "apiVersion: v1\nkind: List\nitems:\n- " + DENY_ALL.replace("\n", "\n  ")
    assert [one.name for one in read(listed, "f.yaml")] == ["p"]


def test_what_only_a_waypoint_can_check_is_remarked():
    text = HEAD + "spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n"
    (written,) = read(text, "file.yaml")
    assert "waypoint" in translated(written, MESH).remark
