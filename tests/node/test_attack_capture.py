"""A hostile application inside an enrolled pod, with every capability: nothing of it may leave in clear or as another.

Topology: see mesh_stage.py; the attacker is shop/client, and shop/other where it breaks its own network.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import APPS, Mesh, link
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]

NOT_CAPTURED = ("any", "any v6", "multicast")  # stay in the pod, or cannot be routed
ROUTED = ("source route", "routing header")  # the kernel sends their SYN elsewhere: see bpf/README.md
IMPOSSIBLE = ("foreign", "repair")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("attack", tmp_path_factory.mktemp("attack")) as running:
        yield running


def attack(mesh: Mesh, pod: str, case: str, *arguments: str) -> Any:
    done = mesh.run(pod, "python3", str(APPS / "attacks.py"), case, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ways(mesh: Mesh, pod: str, *only: str) -> dict[str, str]:
    found: dict[str, str] = attack(mesh, pod, "dials", *mesh.ips("shop/web"), *mesh.ips(pod), *only)
    return found


def test_no_way_of_connecting_leaves_the_pod_in_clear(mesh: Mesh, tmp_path: Path) -> None:
    web4, web6 = mesh.ips("shop/web")
    clear = f"(host {web4} or host {web6}) and tcp and not port 15008"
    with link(mesh, "node-a", tmp_path / "clear.pcap", clear) as seen:
        found = ways(mesh, "shop/client")
        assert seen() == ""
    refused = {name for name, end in found.items() if end != "answered"}
    assert refused == {*NOT_CAPTURED, *ROUTED, *IMPOSSIBLE}, found


def test_mesh_ports_cannot_be_had(mesh: Mesh) -> None:
    """One is left: a port of which ztunnel listens on `lo` alone, on another device. Nothing ever arrives there."""
    found = attack(mesh, "shop/client", "binds", mesh.ips("shop/web")[0])
    assert set(found["got"]) <= {"range device", "unbound device"}
    assert (found["heard"], found["dialled"]) == ([], ["answered"])


@pytest.mark.parametrize("pod", ["shop/client", "legacy/outside", "node/node-a"])
def test_mesh_ports_answer_nobody_who_dials_them(mesh: Mesh, pod: str) -> None:
    targets = ("127.0.0.1", "::1", *mesh.ips("shop/client"), *mesh.ips("shop/other"), *mesh.ips("shop/web"))
    found = attack(mesh, pod, "mesh_ports", *targets)
    assert "answered" not in found.values(), found
    assert mesh.client("shop/client", "try_connect", "web", 7001)["outcome"] == "answered"


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        pytest.param("ip link set lo down", "ip link set lo up", id="lo down"),
        pytest.param(
            "ip address del 127.0.0.1/8 dev lo", "ip address add 127.0.0.1/8 dev lo", id="no loopback address"
        ),
        pytest.param(
            "ip rule add pref 1 lookup local; ip rule del pref 0 lookup local;"
            "ip route add default via 169.254.1.1 dev eth0 onlink table 98;"
            "ip rule add pref 0 to 127.0.0.0/8 lookup 98",
            "ip rule del pref 0 to 127.0.0.0/8 lookup 98; ip rule add pref 0 lookup local; ip rule del pref 1",
            id="loopback routed out",
        ),
    ],
)
def test_a_pod_that_breaks_its_own_network_is_cut_off_and_not_in_clear(
    mesh: Mesh, tmp_path: Path, breaks: str, mends: str
) -> None:
    with link(mesh, "node-a", tmp_path / "cut.pcap", f"host {mesh.ips('shop/other')[0]} and tcp") as seen:
        assert mesh.run("shop/other", "sh", "-ec", breaks).returncode == 0
        try:
            assert ways(mesh, "shop/other", "plain", "bound")["plain"] != "answered"
        finally:
            assert mesh.run("shop/other", "sh", "-ec", mends).returncode == 0
        assert seen() == ""
    assert mesh.client("shop/client", "try_connect", "web", 7001)["outcome"] == "answered", (
        "its neighbour noticed nothing"
    )
    eventually(lambda: mesh.client("shop/other", "try_connect", "web", 7001)["outcome"] == "answered")
