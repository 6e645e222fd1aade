import json
import tarfile

from click.testing import CliRunner

from cli import sysdump as module
from cli.reach import options
from cli.reach.base import AGENT
from lab import paths
from tests.unit.cli.fake_reach import FakeReach


def test_what_answers_is_collected_and_what_does_not_is_named(tmp_path, monkeypatch):
    reach = FakeReach()
    del reach.answers["b", AGENT, "/status"]
    monkeypatch.setattr(options, "reach", lambda *_: reach)
    path = tmp_path / "dump.tar.gz"
    done = CliRunner().invoke(module.sysdump, ["-o", str(path)])
    assert done.exit_code == 0, done.output
    with tarfile.open(path) as archive:
        read = {one.name.partition("/")[2]: archive.extractfile(one).read() for one in archive.getmembers()}
    assert json.loads(read["nodes/a/agent-status.json"])["node"] == "a"
    assert "nodes/b/agent-status.json" not in read
    assert b"nodes/b/agent-status.json: b does not answer" in read["missing.txt"]
    assert "controllers/controller/announced.json" in read


def test_an_archive_without_any_component_is_a_failure_and_json_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "reach", lambda *_: FakeReach(nodes=(), controllers=()))
    done = CliRunner().invoke(module.sysdump, ["-o", str(tmp_path / "d.tar.gz"), "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["archive"] == str(tmp_path / "d.tar.gz")
    assert found["entries"] == [] and "culvert install" in found["missing"][0]


def test_an_archive_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "reach", lambda *_: FakeReach())
    done = CliRunner().invoke(module.sysdump, ["-o", str(tmp_path / "none" / "dump.tar.gz")])
    assert done.exit_code == 1
    assert "No such file" in done.stderr


def test_of_a_lab_objects_and_logs_of_the_mesh_are_collected_and_nothing_of_its_users(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LABS", tmp_path)
    own = paths.LabPaths("demo")
    for kind, name in (("pod", "shop_web"), ("secret", "shop_key"), ("authorizationpolicy", "shop_p")):
        (own.manifests / kind).mkdir(parents=True)
        spec = {"containers": [{"name": "a", "env": ["hidden"], "command": ["hidden"]}]} if kind == "pod" else {}
        metadata = {"name": name, "annotations": {}, "labels": {}}
        (own.manifests / kind / f"{name}.json").write_text(json.dumps({"metadata": metadata, "spec": spec}))
    for name in ("controller.log", "nodes/node-1/ztunnel.log", "shop_web/app.log"):
        (own.logs / name).parent.mkdir(parents=True, exist_ok=True)
        (own.logs / name).write_text("first line\n" + "x" * 90 + f"\nlast of {name}\n")
    monkeypatch.setattr(module, "MAX_LOG_BYTES", 100)
    read = dict(module._of_lab("demo", {"pods": []}))
    assert sorted(read) == [
        "lab-status.json",
        "logs/controller.log",
        "logs/nodes/node-1/ztunnel.log",
        "objects/authorizationpolicy.json",
        "objects/pod.json",
    ]
    assert [one["metadata"]["name"] for one in json.loads(read["objects/pod.json"])] == ["shop_web"]
    assert b"hidden" not in b"".join(read.values())
    assert read["logs/controller.log"].endswith(b"last of controller.log\n")
    assert len(read["logs/controller.log"]) == 100


def test_what_people_put_into_pods_is_left_out():
    pod = {"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "secret"}}}
    pod["spec"] = {"containers": [{"name": "a", "env": ["secret"], "args": ["secret"], "command": ["secret"]}]}
    module._without_environment(pod)
    assert "secret" not in json.dumps(pod)
