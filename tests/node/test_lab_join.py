"""One lab on two machines, each of them a network namespace that has nothing but a cable to the other.

machine a (198.51.100.1)                  machine b (198.51.100.2)
+------------------------------+          +------------------------------+
| home: controller             |  veth    | joined                       |
| node-a: shop/client          |----------| node-b: shop/web             |
|         legacy/outside       |  VXLAN   |                              |
+------------------------------+          +------------------------------+
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from lab.span.secret import new_token
from tests.node import lab_stage
from tests.node.lab_stage import left_behind
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces and loads programs: needs root"),
    pytest.mark.usefixtures("alone"),
]

HOME_IP, JOINED_IP = "198.51.100.1", "198.51.100.2"
SERVE = ["python3", "-m", "http.server", "8000", "--bind", "::"]


class Machine:
    """`culvert lab ...` on one machine; each calls the lab by a name of its own, as they share these directories."""

    def __init__(self, end, ip):
        self.lab = lab_stage.name(f"join{end}")
        self.netns = Path(f"/run/netns/cvjoin{end}{os.getpid()}")
        self.ip = ip

    def within(self, *words):
        return ["nsenter", f"--net={self.netns}", *words]

    def culvert(self, *words, **options):
        command = self.within(*lab_stage.CULVERT, "lab", *words)
        defaults = {"capture_output": True, "text": True, "timeout": 90}
        environment = {**os.environ, "CULVERT_LAB": self.lab}
        return subprocess.run(command, cwd=lab_stage.ROOT, env=environment, check=False, **{**defaults, **options})

    def must(self, *words, **options):
        done = self.culvert(*words, **options)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def status(self):
        return lab_stage.status(self.lab)

    def pod(self, path):
        return next(p for p in self.status()["pods"] if f"{p['namespace']}/{p['name']}" == path)

    def fetch(self, pod, url):
        """The HTTP status of a request from a pod, or curl's complaint."""
        done = self.culvert("exec", pod, "--", "curl", "-sS", "-m", "5", "-o", "/run/body", "-w", "%{http_code}", url)
        return done.stdout if done.returncode == 0 else done.stderr.strip()


def run(*words):
    subprocess.run(words, check=True)


@contextmanager
def two_machines():
    a, b = Machine("a", HOME_IP), Machine("b", JOINED_IP)
    with ExitStack() as stack:
        for machine in (a, b):
            run("ip", "netns", "add", machine.netns.name)
            stack.callback(run, "ip", "netns", "del", machine.netns.name)
        run(*a.within("ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(b.netns)))
        for machine in (a, b):
            run(*machine.within("ip", "address", "add", f"{machine.ip}/24", "dev", "cable"))
            for link in ("lo", "cable"):
                run(*machine.within("ip", "link", "set", link, "up"))
            stack.callback(machine.culvert, "down")
        yield a, b


def named(kind, namespace, name, spec, **labels):
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}


def pod(namespace, name, node, **container):
    spec = {"nodeName": node, "serviceAccountName": name, "containers": [{"name": "c", **container}]}
    return named("Pod", namespace, name, spec, app=name)


def manifests(folder):
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    shop = {"name": "shop", "labels": {"culvert.io/mesh": "enabled"}}
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": shop},
        pod("shop", "web", "node-b", command=SERVE, workingDir="/usr/share/doc", readinessProbe=probe),
        pod("shop", "files", "node-b"),
        pod("shop", "client", "node-a"),
        pod("legacy", "outside", "node-a"),
        named("Service", "shop", "web", {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}),
    ]
    (folder / "all.yaml").write_text(yaml.safe_dump_all(objects))
    return str(folder / "all.yaml")


def join(machine, token, *options):
    return machine.culvert("up", "--join", HOME_IP, "--local", "node-b", "--token-file", str(token), *options)


@contextmanager
def lab_on_both(folder):
    with two_machines() as (a, b):
        a.must("up", manifests(folder), "--listen", HOME_IP, "--local", "node-a")
        token = folder / "token"
        token.write_text(a.must("token"))
        done = join(b, token)
        assert done.returncode == 0, done.stderr
        eventually(lambda: a.pod("shop/web")["ready"])
        yield a, b, token


def test_pods_of_both_machines_meet_in_one_mesh_and_down_leaves_nothing(tmp_path):
    with lab_on_both(tmp_path) as (a, b, token):
        assert eventually(lambda: a.fetch("shop/client", "http://web/")) == "200"
        for ip in b.pod("shop/web")["ips"]:
            host = f"[{ip}]" if ":" in ip else ip
            assert a.fetch("shop/client", f"http://{host}:8000/") == "200"
            assert a.fetch("legacy/outside", f"http://{host}:8000/") == "200"
        log = b.must("logs", "node/node-b/ztunnel")
        assert "src.identity=spiffe://cluster.local/ns/shop/sa/client" in log
        assert a.pod("shop/web")["mesh"]["state"] == "captured"
        ends = {n["name"]: {name: c["restarts"] for name, c in n["components"].items()} for n in a.status()["nodes"]}
        assert ends == {node: {"dns": 0, "agent": 0, "ztunnel": 0} for node in ("node-a", "node-b")}
        # A whole frame's worth and more in both directions: nothing between the machines is too large for the way.
        a.must("exec", "shop/client", "--", "sh", "-c",
               "head -c 3000000 /dev/zero | curl -sS -m 10 -T - -o /dev/null http://web/x")  # fmt: skip
        refer = b.culvert("label", "namespace", "shop", "a=b")
        assert refer.returncode == 1
        assert HOME_IP in refer.stderr
        assert "another machine" in a.culvert("exec", "shop/web", "--", "true").stderr

        assert b.culvert("down").returncode == 0
        assert left_behind(b.lab) == []
        eventually(lambda: not a.pod("shop/web")["ready"])
        assert a.status()["span"]["machines"]["node-b"]["joined"] is False
        assert join(b, token).returncode == 0
        assert eventually(lambda: a.fetch("shop/client", "http://web/") == "200")

        assert a.culvert("down").returncode == 0
        assert left_behind(a.lab) == []
        # The lab is one thing: its end at home is its end everywhere.
        eventually(lambda: left_behind(b.lab) == [], 15)


def test_objects_changed_at_home_change_on_the_joined_machine(tmp_path):
    with lab_on_both(tmp_path) as (a, b, _):
        first = a.pod("shop/web")
        a.must("restart", "shop/web")
        second = a.pod("shop/web")
        assert second["ready"]
        assert second["ips"] != first["ips"]
        assert b.pod("shop/web")["ips"] == second["ips"]

        policy = named("AuthorizationPolicy", "shop", "nobody", {"action": "ALLOW"})
        policy["apiVersion"] = "security.istio.io/v1"
        a.must("apply", "-f", "-", input=yaml.safe_dump(policy))
        eventually(lambda: a.fetch("shop/client", "http://web/") != "200")
        a.must("delete", "authorizationpolicy", "shop/nobody")
        eventually(lambda: a.fetch("shop/client", "http://web/") == "200")

        a.must("delete", "pod", "shop/web")
        assert [p["name"] for p in b.status()["pods"]] == ["files"]


def test_pods_of_a_joined_machine_outlive_a_cut_cable(tmp_path):
    with lab_on_both(tmp_path) as (a, b, _):
        run(*b.within("ip", "link", "set", "cable", "down"))
        eventually(lambda: not a.pod("shop/web")["ready"], 30)
        assert "away" in a.pod("shop/web")["why"]
        before = b.pod("shop/web")
        assert before["ready"]
        assert "when its machine is back" in a.must("delete", "pod", "shop/files")
        assert a.pod("shop/files")["phase"] == "Terminating"
        assert b.pod("shop/files")["ready"]
        run(*b.within("ip", "link", "set", "cable", "up"))
        eventually(lambda: a.pod("shop/web")["ready"], 30)
        assert b.pod("shop/web")["pid"] == before["pid"]
        eventually(lambda: a.fetch("shop/client", "http://web/") == "200", 10)
        for machine in (a, b):
            eventually(lambda: "files" not in [p["name"] for p in machine.status()["pods"]], 10)  # noqa: B023


def test_killed_supervisor_of_a_joined_machine_leaves_what_down_removes(tmp_path):
    with lab_on_both(tmp_path) as (a, b, _):
        os.kill(b.status()["supervisor"], signal.SIGKILL)
        eventually(lambda: not a.pod("shop/web")["ready"], 30)
        assert b.culvert("down").returncode == 0
        assert left_behind(b.lab) == []


def test_lab_that_is_started_anew_is_not_the_one_that_was_joined(tmp_path):
    with lab_on_both(tmp_path) as (a, b, token):
        os.kill(a.status()["supervisor"], signal.SIGKILL)
        assert b.pod("shop/web")["ready"]
        a.must("up", manifests(tmp_path), "--listen", HOME_IP, "--local", "node-a", "--token-file", str(token))
        eventually(lambda: left_behind(b.lab) == [], 20)
        assert join(b, token).returncode == 0
        assert eventually(lambda: a.fetch("shop/client", "http://web/") == "200")


def test_stranger_and_wrong_node_are_refused_with_a_reason(tmp_path):
    with two_machines() as (a, b):
        a.must("up", manifests(tmp_path), "--listen", HOME_IP, "--local", "node-a", "--no-mesh")
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        right.write_text(a.must("token"))
        wrong.write_text("culvert-lab-1." + "A" * 43)
        begin = time.monotonic()
        stranger = join(b, wrong)
        assert stranger.returncode == 1
        assert "does not hold the same token" in stranger.stderr
        taken = b.culvert("up", "--join", HOME_IP, "--local", "node-a", "--token-file", str(right))
        assert taken.returncode == 1
        assert "'node-a' is no node for another machine; these are: node-b" in taken.stderr
        assert time.monotonic() - begin < 60
        assert left_behind(b.lab) == []
        assert right.read_text().strip() not in a.must("logs", "supervisor")
        assert join(b, right).returncode == 0
        assert eventually(lambda: a.fetch("shop/client", "http://web/") == "200")


def test_listening_on_an_address_of_another_machine_is_said(tmp_path):
    with two_machines() as (a, _):
        done = a.culvert("up", manifests(tmp_path), "--listen", "198.51.100.77", "--local", "node-a", "--no-mesh")
        assert done.returncode == 1
        assert "listening for other machines on 198.51.100.77" in done.stderr
        assert left_behind(a.lab) == []


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not installed")
def test_vagrantfile_is_valid():
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"], cwd=lab_stage.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_demo_runs_on_two_machines_as_vagrant_provisions_them(tmp_path):
    """The manifests and the words of lab/vagrant/provision.sh, without its packages and service."""
    script = (lab_stage.ROOT / "lab/vagrant/provision.sh").read_text()
    edit = [
        "sed",
        "-e",
        f"s|@APPS@|{lab_stage.ROOT}/cli/demo/apps|",
        "-e",
        "s/node-1/node-b/",
        "-e",
        "s/node-2/node-a/",
    ]
    for word in edit[4::2]:
        assert word in script
    for words in ("--listen $address --local node-a", "--join $address --local node-b", "--token-file $token"):
        assert words in script
    demo = subprocess.run([*edit, "cli/demo/manifests/demo.yaml"], cwd=lab_stage.ROOT, capture_output=True, check=True)
    (tmp_path / "demo.yaml").write_bytes(demo.stdout)
    token = tmp_path / "token"
    token.write_text(new_token())
    with two_machines() as (a, b):
        a.must("up", str(tmp_path / "demo.yaml"), "--listen", HOME_IP, "--local", "node-a", "--token-file", str(token))
        assert a.must("token") == token.read_text() + "\n"
        assert Path(f"/run/culvert/labs/{a.lab}/supervisor.pid").read_text() == f"{a.status()['supervisor']}\n"
        assert join(b, token).returncode == 0
        eventually(lambda: all(p["ready"] for p in a.status()["pods"]), 10)
        assert a.must("exec", "shop/client", "--", "curl", "-sS", "-m", "5", "http://web/") == "hello /\n"
        assert a.must("exec", "shop/client", "--", "redis-cli", "-h", "redis", "ping") == "PONG\n"
        log = b.must("logs", "node/node-b/ztunnel")
        assert "dst.identity=spiffe://cluster.local/ns/shop/sa/redis" in log
