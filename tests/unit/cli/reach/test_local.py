import http.server
import json
import threading

import pytest

from cli.reach import local
from cli.reach.base import Unreachable
from cli.reach.local import NodeReach
from lab import paths


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUN", tmp_path)
    monkeypatch.setattr(paths, "LABS", tmp_path / "labs")
    monkeypatch.setattr(local, "inside", lambda netns, work: work())
    return tmp_path


def agent(run, key):
    (run / key).mkdir()
    (run / key / "agent-status.json").write_text("{}")


def pod(run, key, name, **labels):
    (run / key / "pods").mkdir(exist_ok=True)
    found = {"uid": name, "namespace": "shop", "name": name, "node": "n", "ips": [], "labels": labels}
    (run / key / "pods" / f"shop_{name}.json").write_text(json.dumps(found))


def test_the_only_node_is_meant_and_one_that_is_none_is_answered_with_those_that_are(run):
    with pytest.raises(Unreachable, match=r"which node.*none"):
        NodeReach(None)
    agent(run, "a")
    assert NodeReach(None).nodes() == ["a"]
    with pytest.raises(Unreachable, match="no node 'b'; these have an agent here: a"):
        NodeReach("b")
    agent(run, "b")
    with pytest.raises(Unreachable, match=r"which node.*a, b \(--local KEY\)"):
        NodeReach(None)
    assert NodeReach("b").nodes() == ["b"]


def test_labels_are_what_the_agent_is_told(run):
    agent(run, "a")
    with pytest.raises(Unreachable, match="--kubeconfig"):
        NodeReach("a").pod_labels()
    pod(run, "a", "web", app="web")
    pod(run, "a", "bare")
    (run / "a" / "pods" / "half.json").write_text('{"uid": ')
    (run / "a" / "pods" / "odd.json").write_text('{"uid": "x", "labels": 3}')
    assert NodeReach("a").pod_labels() == {"shop/web": {"app": "web"}, "shop/bare": {}}


def unused_port():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port


def test_a_node_of_a_lab_that_does_not_answer_here_is_said_to_be_one(run, monkeypatch):
    port = unused_port()
    monkeypatch.setitem(local.PROCESSES, port, "ztunnel")
    agent(run, "demo-node-1")
    with pytest.raises(Unreachable) as raised:
        NodeReach("demo-node-1").get("demo-node-1", port, "/")
    assert str(raised.value).startswith("node demo-node-1: its ztunnel does not answer on port")
    assert "--lab" not in str(raised.value)
    (run / "labs" / "demo").mkdir(parents=True)
    with pytest.raises(Unreachable, match="demo-node-1 is a node of lab demo: say --lab demo"):
        NodeReach("demo-node-1").get("demo-node-1", port, "/")


def test_a_controller_is_here_when_one_listens_here(run, monkeypatch):
    agent(run, "a")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        monkeypatch.setattr(local, "CONTROLLER", server.server_port)
        assert NodeReach("a").controllers() == ["controller"]
    assert NodeReach("a").controllers() == []


def test_what_a_process_refuses_is_told_in_its_words(run, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"source 'x' is not a workload\n")

        def log_message(self, *_):
            pass

    agent(run, "demo-node-1")
    (run / "labs" / "demo").mkdir(parents=True)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setitem(local.PROCESSES, server.server_port, "ztunnel")
        answers = threading.Thread(target=server.handle_request, name="answers once")
        answers.start()
        with pytest.raises(Unreachable) as raised:
            NodeReach("demo-node-1").get("demo-node-1", server.server_port, "/explain")
        answers.join()
    assert str(raised.value) == "source 'x' is not a workload"


def test_a_pod_of_a_lab_that_is_none_is_answered_with_near_ones_or_with_some(run, monkeypatch):
    pods = [{"namespace": "shop", "name": f"web-{number}", "node": "node-1"} for number in range(20)]
    monkeypatch.setattr(local, "choose", lambda lab: "demo")
    monkeypatch.setattr(local.client, "order", lambda lab, do: {"pods": pods, "nodes": []})
    reach = local.LabReach(None)
    assert reach.place_of("shop/web-7") == ("node-1", "shop/web-7")
    with pytest.raises(Unreachable, match=r"no pod 'shop/wbe-7'; near are .*shop/web-7"):
        reach.place_of("shop/wbe-7")
    with pytest.raises(Unreachable, match=r"no pod 'default/x'; it has shop/web-0, .* and 15 more"):
        reach.place_of("x")
    pods.clear()
    with pytest.raises(Unreachable, match="it has none"):
        reach.place_of("x")
