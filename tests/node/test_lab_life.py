"""Labs come, live side by side, lose parts, and go without leaving anything."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.node.lab_stage import culvert, lab, left_behind, name, start, status
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: needs root")]


def pod(pod_name, *command, **spec):
    container = {"name": "c", **({"command": list(command)} if command else {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_name},
        "spec": {"containers": [container], **spec},
    }


def write(directory, *objects):
    (directory / "all.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    return directory


def pods_of(own):
    return {p["name"]: p for p in status(own)["pods"]}


def test_down_leaves_nothing(tmp_path):
    with lab("none", write(tmp_path, pod("a", "sleep", "1000"), pod("b"))) as own:
        assert left_behind(own)
        assert culvert("lab", "down", "--lab", own).returncode == 0
        assert left_behind(own) == []


def test_supervisor_that_was_killed_takes_its_processes_along_and_down_removes_the_rest(tmp_path):
    stubborn = "trap '' TERM HUP; setsid sleep 4242 & while :; do sleep 0.1; done"
    with lab("kill", write(tmp_path, pod("a", "sh", "-c", stubborn))) as own:
        found = status(own)
        os.kill(found["supervisor"], signal.SIGKILL)
        first = found["pods"][0]["pid"]
        eventually(lambda: not Path(f"/proc/{first}/ns/net").exists(), 15)
        done = culvert("lab", "exec", "--lab", own, "default/a", "--", "true")
        assert done.returncode == 1
        assert "culvert lab status" in done.stderr
        assert "culvert lab down" in culvert("lab", "status", "--lab", own).stderr
        assert culvert("lab", "down", "--lab", own).returncode == 0
        assert left_behind(own) == []


def test_lab_whose_supervisor_was_killed_can_be_started_again(tmp_path):
    manifests = write(tmp_path, pod("a"))
    with lab("again", manifests) as own:
        os.kill(status(own)["supervisor"], signal.SIGKILL)
        done = culvert("lab", "up", str(manifests), "--lab", own, "--no-mesh")
        assert done.returncode == 0, done.stderr
        assert pods_of(own)["a"]["ready"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_start_leaves_nothing(tmp_path, number):
    never = {"exec": {"command": ["false"]}}
    unready = pod("a", "sleep", "1000")
    unready["spec"]["containers"][0]["readinessProbe"] = never
    own = name("int")
    process = start(
        "lab", "up", str(write(tmp_path, unready)), "--lab", own, "--no-mesh", stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: Path(f"/run/culvert/labs/{own}/pods/default_a.json").exists(), 15)
    process.send_signal(number)
    assert "interrupted" in process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert left_behind(own) == []


@pytest.mark.parametrize("after_s", [0.0, 0.2, 1.5])
def test_down_while_up_is_running_takes_it_down_and_up_says_so(tmp_path, after_s):
    """While its supervisor starts, and while `up` waits for a pod that never becomes ready."""
    unready = pod("a", "sleep", "1000")
    unready["spec"]["containers"][0]["readinessProbe"] = {"exec": {"command": ["false"]}}
    own = name("race")
    up = start("lab", "up", str(write(tmp_path, unready)), "--lab", own, "--no-mesh", stderr=subprocess.PIPE, text=True)
    eventually(lambda: Path(f"/run/culvert/labs/{own}/supervisor.log").exists(), 15)
    time.sleep(after_s)
    down = culvert("lab", "down", "--lab", own)
    said = up.communicate(timeout=30)[1]
    assert (down.returncode, down.stderr) == (0, "")
    assert up.returncode == 1
    assert "Traceback" not in said
    assert left_behind(own) == []


@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.3, 0.4])
def test_down_while_nodes_and_pods_are_being_made_takes_all_of_them_along(tmp_path, after_s):
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n{i}"}} for i in range(30)]
    pods = [pod(f"p{i}", "sleep", "1000", nodeName=f"n{i}") for i in range(30)]
    own = name("made")
    assert culvert("lab", "up", str(write(tmp_path, pod("a"))), "--lab", own, "--no-mesh").returncode == 0
    apply = start("lab", "apply", "--lab", own, "-f", str(write(tmp_path, *nodes, *pods)), stderr=subprocess.PIPE)
    eventually(lambda: list(Path("/run/netns").glob(f"cv-{own}-n0")), 15)
    time.sleep(after_s)
    down = culvert("lab", "down", "--lab", own)
    said = apply.communicate(timeout=30)[1].decode()
    assert (down.returncode, down.stderr) == (0, "")
    assert f"lab '{own}' is being taken down" in said
    assert left_behind(own) == []


def test_one_of_several_starts_under_one_name_wins(tmp_path):
    own, manifests = name("many"), write(tmp_path, pod("a"))
    ups = [
        start("lab", "up", str(manifests), "--lab", own, "--no-mesh", stderr=subprocess.PIPE, text=True) for _ in "abc"
    ]
    said = [up.communicate(timeout=60)[1] for up in ups]
    try:
        assert sorted(up.returncode for up in ups) == [0, 1, 1], said
        assert pods_of(own)["a"]["ready"]
    finally:
        culvert("lab", "down", "--lab", own)


def test_what_a_reboot_leaves_is_no_hindrance(tmp_path):
    """Files without processes, without namespaces, with a record that was being written."""
    manifests = write(tmp_path, pod("a"))
    with lab("boot", manifests) as own:
        root = Path(f"/run/culvert/labs/{own}")
        for damage in ("", "{"):
            os.kill(status(own)["supervisor"], signal.SIGKILL)
            eventually(lambda: "has died" in culvert("lab", "status", "--lab", own).stderr, 15)
            for path in Path("/run/netns").glob(f"cv-{own}-*"):
                subprocess.run(["ip", "netns", "delete", path.name], check=True)
            (root / "record.json").write_text(damage)
            done = culvert("lab", "up", str(manifests), "--lab", own, "--no-mesh")
            assert done.returncode == 0, done.stderr
            assert pods_of(own)["a"]["ready"]


def test_programs_that_cannot_be_started_are_named_with_the_reason(tmp_path):
    missing = pod("missing", "no-such-program")
    nowhere = pod("nowhere", "true")
    nowhere["spec"]["containers"][0]["workingDir"] = "/no/such/directory"
    own = name("cannot")
    try:
        done = culvert("lab", "up", str(write(tmp_path, missing, nowhere)), "--lab", own, "--no-mesh", "--timeout", "2")
        assert done.returncode == 1
        assert "no-such-program: not found" in done.stderr
        assert "/no/such/directory" in done.stderr
    finally:
        culvert("lab", "down", "--lab", own)


def shrinks(log: Path) -> Callable[[], bool]:
    """Whether the file is shorter than when it was asked last: a fast writer fills it again within milliseconds."""
    most = 0

    def look() -> bool:
        nonlocal most
        before, most = most, log.stat().st_size
        return most < before

    return look


def test_log_of_a_program_that_writes_for_ever_stays_bounded(tmp_path):
    with lab("flood", write(tmp_path, pod("a", "yes"), pod("b"))) as own:
        log = Path(f"/run/culvert/labs/{own}/logs/default_a/c.log")
        for _ in range(3):  # how far it gets between two looks is the machine's affair
            eventually(lambda: log.stat().st_size > 8 << 20, 15)
            eventually(lambda: log.stat().st_size < 8 << 20, 15)
        assert culvert("lab", "exec", "--lab", own, "default/b", "--", "true").returncode == 0


def test_two_labs_with_the_same_names_and_addresses_do_not_meet(tmp_path):
    manifests = write(tmp_path, pod("a", "python3", "-m", "http.server", "80", nodeName="n"))
    with lab("one", manifests) as one, lab("two", manifests) as two:
        assert pods_of(one)["a"]["ips"] == pods_of(two)["a"]["ips"]
        inodes = {
            culvert("lab", "exec", "--lab", own, "default/a", "--", "readlink", "/proc/self/ns/net").stdout
            for own in (one, two)
        }
        assert len(inodes) == 2
        refused = culvert("lab", "status", env={k: v for k, v in os.environ.items() if k != "CULVERT_LAB"})
        assert refused.returncode == 1
        assert one in refused.stderr
        assert two in refused.stderr
        assert culvert("lab", "down", "--lab", one).returncode == 0
        assert pods_of(two)["a"]["ready"]
        assert left_behind(one) == []


def test_second_start_under_one_name_is_refused_and_harms_nothing(tmp_path):
    with lab("same", write(tmp_path, pod("a"))) as own:
        done = culvert("lab", "up", str(tmp_path), "--lab", own, "--no-mesh")
        assert done.returncode == 1
        assert "is up already" in done.stderr
        assert pods_of(own)["a"]["ready"]


def test_malformed_objects_are_named_and_the_rest_runs(tmp_path):
    (tmp_path / "bad.yaml").write_text("kind: [\n---\nkind: Pod\napiVersion: v1\nmetadata: {name: B_}\n")
    broken = pod("broken", nodeName="nowhere")
    (tmp_path / "pod.json").write_text(json.dumps(broken))
    own = name("bad")
    try:
        done = culvert("lab", "up", str(write(tmp_path, pod("good"))), "--lab", own, "--no-mesh", "--nodes", "1")
        assert done.returncode == 1
        assert "bad.yaml:1: not YAML" in done.stderr
        assert "bad.yaml:3" in done.stderr
        assert "refused: Pod default/broken" in done.stderr
        assert "no node of this lab: node-1" in done.stderr
        assert pods_of(own)["good"]["ready"]
    finally:
        culvert("lab", "down", "--lab", own)


def test_pod_that_does_not_become_ready_is_named_with_its_reason(tmp_path):
    slow = pod("slow", "sleep", "1000")
    slow["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 81}}
    own = name("slow")
    try:
        done = culvert("lab", "up", str(write(tmp_path, slow)), "--lab", own, "--no-mesh", "--timeout", "2")
        assert done.returncode == 1
        assert "not ready: pod default/slow" in done.stderr
        assert ":81: Connection refused" in done.stderr
    finally:
        culvert("lab", "down", "--lab", own)


def test_program_that_ends_is_started_again_and_one_that_may_end_is_left(tmp_path):
    objects = [pod("dies", "sh", "-c", "sleep 0.1; exit 3"), pod("done", "true", restartPolicy="Never"),
               pod("fails", "false", restartPolicy="Never")]  # fmt: skip
    own = name("rst")
    try:
        done = culvert("lab", "up", str(write(tmp_path, *objects)), "--lab", own, "--no-mesh", "--timeout", "5")
        assert done.returncode == 1  # for the pod that failed
        eventually(lambda: pods_of(own)["dies"]["restarts"] >= 2, 15)
        assert pods_of(own)["done"]["phase"] == "Succeeded"
        assert pods_of(own)["fails"]["phase"] == "Failed"
    finally:
        culvert("lab", "down", "--lab", own)


def test_init_containers_run_first_and_one_after_the_other(tmp_path):
    trace = tmp_path / "trace"

    def step(word):
        return {"name": word, "command": ["sh", "-c", f"sleep 0.1; echo {word} >> {trace}"]}

    item = pod(
        "a", "sh", "-c", f"echo main >> {trace}; exec sleep 1000", initContainers=[step("first"), step("second")]
    )
    with lab("init", write(tmp_path, item)):
        eventually(lambda: trace.read_text().split() == ["first", "second", "main"], 15)


def test_changed_labels_keep_the_pod_and_a_changed_spec_replaces_it(tmp_path):
    with lab("chg", write(tmp_path, pod("a", "sleep", "1000"))) as own:
        before = pods_of(own)["a"]
        assert culvert("lab", "label", "--lab", own, "pod", "default/a", "x=y").returncode == 0
        assert pods_of(own)["a"]["pid"] == before["pid"]
        facts = json.loads(Path(f"/run/culvert/{own}-{before['node']}/pods/default_a.json").read_text())
        assert facts["labels"] == {"x": "y"}
        (tmp_path / "new.json").write_text(json.dumps(pod("a", "sleep", "2000")))
        done = culvert("lab", "apply", "--lab", own, "-f", str(tmp_path / "new.json"))
        assert done.stdout == "Pod default/a replaced\n"
        after = pods_of(own)["a"]
        assert after["ready"]
        assert after["pid"] != before["pid"]
        shown = culvert("lab", "exec", "--lab", own, "default/a", "--", "ps", "-eo", "args=").stdout
        assert "sleep 2000" in shown


def test_deleted_pod_gets_term_first_and_is_gone_afterwards(tmp_path):
    trace = tmp_path / "trace"
    script = f"trap 'echo term > {trace}; exit 0' TERM; while :; do sleep 0.05; done"
    with lab("del", write(tmp_path, pod("a", "sh", "-c", script))) as own:
        netns = Path(pods_of(own)["a"]["netns"])
        time.sleep(0.2)
        assert culvert("lab", "delete", "--lab", own, "pod", "default/a").returncode == 0
        assert trace.read_text() == "term\n"
        assert not netns.exists()
        assert "a" not in pods_of(own)
        again = culvert("lab", "delete", "--lab", own, "pod", "default/a")
        assert again.returncode == 1
        assert "there is no Pod default/a" in again.stderr


def test_deleted_namespace_takes_all_it_holds_along(tmp_path):
    one = pod("a")
    one["metadata"]["namespace"] = "shop"
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"},
               "spec": {"ports": [{"port": 80}]}}  # fmt: skip
    with lab("ns", write(tmp_path, one, service)) as own:
        assert culvert("lab", "delete", "--lab", own, "namespace", "shop").returncode == 0
        assert "shop" not in culvert("lab", "get", "--lab", own).stdout


def test_deleted_pods_namespace_is_not_held_by_other_pods(tmp_path):
    """A pod's mount namespace must not carry copies of the named namespaces of others."""
    with lab("held", write(tmp_path, pod("a", nodeName="n"), pod("b", nodeName="n"))) as own:
        for item in ("a", "b"):
            mounts = culvert("lab", "exec", "--lab", own, f"default/{item}", "--", "cat", "/proc/self/mounts").stdout
            assert "/run/netns" not in mounts


def test_volumes_hold_config_and_are_shared_by_containers(tmp_path):
    item = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a"},
        "spec": {
            "volumes": [{"name": "conf", "configMap": {"name": "m"}}, {"name": "work", "emptyDir": {}}],
            "containers": [
                {"name": "c", "volumeMounts": [{"name": "conf", "mountPath": "/run/conf"}]},
                {"name": "d", "volumeMounts": [{"name": "work", "mountPath": "/run/vol"}]},
            ],
        },
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a.conf": "hello"}}
    with lab("vol", write(tmp_path, item, config)) as own:
        done = culvert(
            "lab", "exec", "--lab", own, "a", "--", "sh", "-c", "cat /run/conf/a.conf; touch /run/vol/x; ls /run/vol"
        )
        assert done.stdout == "hellox\n"


def test_machine_outside_the_lab_is_left_as_it_is(tmp_path):
    files = Path("/etc/resolv.conf"), Path("/etc/hosts")  # the smallest Debian has no hosts file

    def machine():
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        return links, rules, forwarding, *(path.read_text() if path.exists() else None for path in files)

    before = machine()
    with lab("out", write(tmp_path, pod("a"))):
        assert machine() == before
    assert machine() == before
