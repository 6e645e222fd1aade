import pytest

from cli.lab import show
from lab import paths
from lab.choice import LabError
from lab.paths import LabPaths


def pod(**fields):
    base = {"namespace": "shop", "name": "a", "node": "n", "phase": "Running", "ready": True, "why": "is ready",
            "ips": ["10.244.1.2"], "restarts": 0, "mesh": {"asked": False, "state": "", "reason": ""}}  # fmt: skip
    return {**base, **fields}


def lab(*pods, components=None, **mesh):
    running = {"state": "running", "pid": 1, "restarts": 0, "last_end": ""}
    node = {"name": "n", "ips": ["172.30.1.1"], "netns": "/run/netns/x", "components": components or {"dns": running}}
    return {
        "lab": "t",
        "supervisor": 1,
        "nodes": [node],
        "pods": list(pods),
        "services": [],
        "mesh": {"enabled": True, "waiting_for": [], **mesh},
    }


def test_lab_in_order_has_no_faults():
    assert show.faults(lab(pod())) == []


def test_every_fault_is_a_line():
    stopped = {"state": "stopped", "pid": None, "restarts": 3, "last_end": "killed by SIGSEGV"}
    waiting = pod(mesh={"asked": True, "settled": False, "state": "waiting", "reason": "no ztunnel"})
    found = show.faults(
        lab(
            pod(ready=False, phase="Pending", why="is being started"),
            waiting,
            components={"ztunnel": stopped},
            missing=["agent"],
            waiting_for=["controller: GET: refused"],
        )
    )
    assert found == [
        "pod shop/a: is being started",
        "pod shop/a: runs, but is not captured yet: waiting no ztunnel",
        "node/n/ztunnel: killed by SIGSEGV",
        "controller: GET: refused",
        "agent is not installed",
    ]


def test_pod_that_has_done_its_work_is_no_fault_and_one_that_failed_is():
    assert show.faults(lab(pod(ready=False, phase="Succeeded"))) == []
    assert show.faults(lab(pod(ready=False, phase="Failed", why="exit status 1"))) == ["pod shop/a: exit status 1"]


def test_status_stands_in_columns():
    lines = show._lines(lab(pod(), pod(name="longer-name")))
    first, second = (line for line in lines if line.startswith("shop/"))
    assert first.index("Ready") == second.index("Ready")


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LABS", tmp_path)
    own = LabPaths("t")
    for path in ("shop_web/web.log", "shop_web/side.log", "shop_web/sandbox.log", "nodes/n/ztunnel.log"):
        (own.logs / path).parent.mkdir(parents=True, exist_ok=True)
        (own.logs / path).touch()
    return own


def test_logs_of_a_pod_are_those_of_its_containers(own):
    assert [path.name for path in show.log_files(own, "shop/web", None)] == ["side.log", "web.log"]
    assert [path.name for path in show.log_files(own, "shop/web", "side")] == ["side.log"]


def test_logs_of_a_component_are_found_by_node(own):
    assert show.log_files(own, "node/n/ztunnel", None) == [own.logs / "nodes" / "n" / "ztunnel.log"]


def test_nothing_logged_is_said(own):
    with pytest.raises(LabError, match="shop/none"):
        show.log_files(own, "shop/none", None)


def test_what_agents_say_of_pods_stands_below_them():
    mesh = {"asked": True, "settled": True, "reason": "", "state": "captured"}
    found = lab(
        pod(mesh={**mesh, "state": "refused", "reason": "the pod listens on 15008"}),
        pod(name="b", mesh={**mesh, "conflict": "it was refused 15006"}),
        pod(name="c", mesh={**mesh, "conflict": "it was refused 15006", "unguarded": "no veth"}),
        pod(name="d", mesh={**mesh, "reason": "waiting for ztunnel"}),
    )
    assert [line for line in show._lines(found) if ": " in line] == [
        "not in the mesh: shop/a: the pod listens on 15008",
        "without guard: shop/c: no veth",
        "port of the mesh: shop/b, shop/c: it was refused 15006",
    ]
