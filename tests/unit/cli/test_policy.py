import json

import pytest
from click.testing import CliRunner

from cli import policy as module
from cli.reach import options
from cli.reach.base import ZTUNNEL_ADMIN
from tests.unit.cli.fake_reach import FakeReach
from tests.unit.cli.trial.cases import ALLOW_CLIENT, DENY_ALL, flow


@pytest.fixture
def reach(monkeypatch):
    fake = FakeReach()
    for node in ("a", "b"):
        dump = fake.answers[node, ZTUNNEL_ADMIN, "/config_dump"]
        dump["config"] = {"place": {"trust_domain": "cluster.local"}}
        fake.answers[node, ZTUNNEL_ADMIN, "/flows"] = [flow()]
    monkeypatch.setattr(options, "reach", lambda *_: fake)
    return fake


def run(tmp_path, text, *words):
    (tmp_path / "p.yaml").write_text(text)
    return CliRunner().invoke(module.policy, ["test", str(tmp_path / "p.yaml"), *words])


def test_what_would_be_refused_is_shown_and_the_status_says_so(reach, tmp_path):
    done = run(tmp_path, DENY_ALL)
    assert done.exit_code == 1
    assert "2 of 2 remembered connections" in done.stdout
    assert "shop/web:8080" in done.stdout


def test_what_changes_nothing_is_quiet(reach, tmp_path):
    done = run(tmp_path, ALLOW_CLIENT)
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 1
    assert "let in" in run(tmp_path, ALLOW_CLIENT, "--all").stdout


def test_json_has_every_flow(reach, tmp_path):
    found = json.loads(run(tmp_path, ALLOW_CLIENT, "--json").stdout)
    assert [one["would_be_allowed"] for one in found["flows"]] == [True, True]


def test_a_file_that_is_malformed_is_wrong_usage_whether_or_not_a_node_answers(reach, tmp_path):
    reach.answers.clear()
    done = run(tmp_path, "spec: [")
    assert done.exit_code == 2
    assert f"{tmp_path}/p.yaml: while parsing" in done.stderr
    assert run(tmp_path, "").exit_code == 2


def test_a_policy_of_an_unknown_version_is_wrong_usage(reach, tmp_path):
    done = run(tmp_path, DENY_ALL.replace("istio.io/v1", "istio.io/v99"))
    assert done.exit_code == 2
    assert f"{tmp_path}/p.yaml: AuthorizationPolicy shop/p: apiVersion: 'v99' is no version" in done.stderr
    assert done.stdout == ""


def test_what_is_no_text_no_file_or_without_end_is_wrong_usage(reach, tmp_path, monkeypatch):
    (tmp_path / "p.yaml").write_bytes(b"a\xff")
    done = CliRunner().invoke(module.policy, ["test", str(tmp_path / "p.yaml")])
    assert (done.exit_code, "is not UTF-8: byte 1 is 0xff" in done.stderr) == (2, True)
    assert CliRunner().invoke(module.policy, ["test", str(tmp_path)]).exit_code == 2
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    done = CliRunner().invoke(module.policy, ["test", "/dev/zero"])
    assert (done.exit_code, "has more than 1000 bytes" in done.stderr) == (2, True)


def test_where_no_connection_is_remembered_nothing_is_judged_and_that_is_said(reach, tmp_path):
    for node in ("a", "b"):
        reach.answers[node, ZTUNNEL_ADMIN, "/flows"] = []
    done = run(tmp_path, DENY_ALL)
    assert (done.exit_code, done.stdout) == (0, "0 of 0 remembered connections would be treated otherwise\n")
    assert "no node remembers a connection" in done.stderr


def test_connections_of_pods_that_are_gone_are_counted(reach, tmp_path):
    reach.pod_labels = lambda: {}
    done = run(tmp_path, DENY_ALL.replace("spec: {", "spec: {selector: {matchLabels: {app: web}}, "))
    assert done.stdout == "0 of 0 remembered connections would be treated otherwise\n"
    assert "2 remembered connections are left out: their pods are gone" in done.stderr


def test_standard_input_is_read(reach):
    done = CliRunner().invoke(module.policy, ["test", "-"], input=DENY_ALL)
    assert done.exit_code == 1
    assert "2 of 2 remembered connections" in done.stdout
    done = CliRunner().invoke(module.policy, ["test", "-"], input="3")
    assert done.stderr.startswith("culvert: standard input: must be a mapping")
