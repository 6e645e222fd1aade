"""The plain network of a lab, used by programs that know nothing of it.

node a: server (HTTP on 8080, dual stack), late (ready only when told)
node b: client
services: web -> server, NodePort; db headless -> server; none without endpoints; late -> late
"""

import json
import os
from pathlib import Path

import pytest

from tests.node.lab_stage import culvert, lab, status
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root")]

SERVER = """
import http.server, json, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"peer": self.client_address[0], "local": self.connection.getsockname()[0]}).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", 8080), Handler).serve_forever()
"""


def service(name, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ports": [{"port": 80, "targetPort": "http"}], "ipFamilyPolicy": "PreferDualStack", **spec},
    }


def pod(name, node, container=None, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", **(container or {})}], **spec},
    }


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    manifests = tmp_path_factory.mktemp("manifests")
    ports = [{"name": "http", "containerPort": 8080}]
    server = {"command": ["python3", "-c", SERVER], "ports": ports}
    ready = manifests / "late-is-ready"
    probe = {"exec": {"command": ["test", "-e", str(ready)]}, "periodSeconds": 0.2, "failureThreshold": 1}
    objects = [
        pod("server", "a", {**server, "readinessProbe": {"httpGet": {"port": "http"}}}, hostname="one", subdomain="db"),
        pod("late", "a", {**server, "readinessProbe": probe}),
        pod("client", "b"),
        service("web", type="NodePort", selector={"app": "server"}),
        service("db", clusterIP="None", selector={"app": "server"}),
        service("none", selector={"app": "nobody"}),
        service("late", selector={"app": "late"}),
    ]
    ready.touch()
    (manifests / "all.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    with lab("net", manifests) as own:
        yield own


def in_pod(own, pod_name, *argv):
    return culvert("lab", "exec", "--lab", own, f"shop/{pod_name}", "--", *argv)


def get(own, url, pod_name="client", *options):
    done = in_pod(own, pod_name, "curl", "-gsS", "-m", "5", *options, url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ips_of(own, pod_name):
    return next(p["ips"] for p in status(own)["pods"] if p["name"] == pod_name)


def test_server_sees_the_pods_own_address_over_both_families(own):
    (server4, server6), (client4, client6) = ips_of(own, "server"), ips_of(own, "client")
    assert get(own, f"http://{server4}:8080/") == {"peer": f"::ffff:{client4}", "local": f"::ffff:{server4}"}
    assert get(own, f"http://[{server6}]:8080/") == {"peer": client6, "local": server6}


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("host", ["web", "web.shop", "web.shop.svc.cluster.local"])
def test_service_answers_by_name_over_both_families(own, host, family):
    answer = get(own, f"http://{host}/", "client", family)
    assert answer["local"].removeprefix("::ffff:") in ips_of(own, "server")


def test_headless_service_is_the_pods_themselves(own):
    found = in_pod(own, "client", "getent", "ahosts", "db").stdout
    assert {line.split()[0] for line in found.splitlines()} == set(ips_of(own, "server"))
    assert in_pod(own, "client", "getent", "hosts", "one.db").returncode == 0


def test_unknown_names_and_the_world_outside_fail_at_once(own):
    assert in_pod(own, "client", "getent", "hosts", "nobody.shop").returncode == 2
    done = in_pod(own, "client", "curl", "-sS", "-m", "5", "-w", "%{time_total}", "http://192.0.2.1/")
    assert done.returncode == 7
    assert float(done.stdout) < 1


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_service_without_endpoints_refuses_at_once(own, family):
    done = in_pod(own, "client", "curl", "-sS", family, "-m", "5", "http://none/")
    assert done.returncode == 7
    assert "refused" in done.stderr.lower() or "connect" in done.stderr.lower()


def test_node_port_of_either_node_leads_to_the_pod_with_the_nodes_address(own):
    found = status(own)
    node_port = next(s["ports"][0]["node_port"] for s in found["services"] if s["name"] == "web")
    for node in found["nodes"]:
        for ip in node["ips"]:
            host = f"[{ip}]" if ":" in ip else ip
            answer = get(own, f"http://{host}:{node_port}/")
            assert answer["peer"].removeprefix("::ffff:") in node["ips"]


def test_node_reaches_services_and_pods_with_its_own_address(own):
    node = next(n for n in status(own)["nodes"] if n["name"] == "a")
    done = culvert(
        "lab", "exec", "--lab", own, "node/a", "--", "curl", "-sS", "-m5", f"http://{ips_of(own, 'server')[0]}:8080"
    )
    assert json.loads(done.stdout)["peer"] == f"::ffff:{node['ips'][0]}"


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_pod_reaches_itself_through_its_service(own, family):
    assert get(own, "http://web/", "server", family)


def test_endpoints_follow_readiness(own, tmp_path_factory):
    late = next(s for s in status(own)["services"] if s["name"] == "late")
    assert len(late["ports"][0]["endpoints"]) == 2
    ready = next(tmp_path_factory.getbasetemp().glob("manifests*/late-is-ready"))
    ready.unlink()
    eventually(lambda: in_pod(own, "client", "curl", "-s", "-m", "2", "http://late/").returncode == 7, 10)
    ready.touch()
    eventually(lambda: in_pod(own, "client", "curl", "-s", "-m", "2", "http://late/").returncode == 0, 10)


def test_pod_sees_only_its_own_processes_and_run_directory(own):
    processes = in_pod(own, "client", "ps", "-eo", "args=").stdout.splitlines()
    assert processes[0].startswith("sleep")
    assert len(processes) == 2
    assert in_pod(own, "client", "ls", "/run").stdout.split() == ["lock"]


def test_agent_and_controller_are_told_of_the_pods(own):
    facts = json.loads(Path(f"/run/culvert/{own}-a/pods/shop_server.json").read_text())
    assert facts["ips"] == ips_of(own, "server")
    assert facts["service_account"] == "default"
    assert Path(facts["netns"]).exists()
    shown = json.loads(Path(f"/run/culvert/labs/{own}/manifests/pod/shop_server.json").read_text())
    assert shown["status"]["phase"] == "Running"
    assert shown["metadata"]["uid"] == facts["uid"]
    assert "shop" in json.loads(Path(f"/run/culvert/{own}-b/namespaces.json").read_text())
