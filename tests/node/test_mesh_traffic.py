"""What applications see of the mesh: as little as possible. Topology: see mesh_stage.py."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import Mesh

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("traffic", tmp_path_factory.mktemp("traffic")) as running:
        yield running


def vips(mesh: Mesh) -> list[str]:
    found: list[str] = next(s for s in mesh.status()["services"] if s["name"] == "web")["ips"]
    return found


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("target", ["vip", "pod"])
def test_both_ends_see_true_addresses(mesh: Mesh, family: int, target: str) -> None:
    own = mesh.ips("shop/client")[family]
    dialled = vips(mesh)[family] if target == "vip" else mesh.ips("shop/web")[family]
    seen = mesh.client("shop/client", "names", dialled, 7001)
    peer = seen["server"]["peer"][0].removeprefix("::ffff:")
    assert peer == own
    assert seen["server"]["peer"][1] == seen["own"][1], "the port is the client's too"
    assert seen["own"][0] == own
    assert seen["peer"] == [dialled, 7001]
    line = mesh.logged("node-b", src__addr=f"{own}:{seen['own'][1]}" if not family else f"[{own}]:{seen['own'][1]}")
    assert line["src.identity"] == "spiffe://cluster.local/ns/shop/sa/client"


def test_a_service_name_and_another_port_lead_there_too(mesh: Mesh) -> None:
    assert mesh.client("shop/client", "names", "web", 80)["server"]["local"][1] == 7001
    assert mesh.client("shop/client", "names", "web.shop.svc.cluster.local", 7001)["peer"][1] == 7001


def test_half_close_leaves_the_other_direction_open(mesh: Mesh) -> None:
    assert mesh.client("shop/client", "half_close", "web", 7001)["rest"] == "last wordseof"


def test_a_server_may_speak_first(mesh: Mesh) -> None:
    assert mesh.client("shop/client", "banner", "web", 7002)["banner"].startswith("220 ")


def test_a_long_transfer_arrives_whole_in_both_directions(mesh: Mesh) -> None:
    size = 256 << 20
    found = mesh.client("shop/client", "digest", "web", 7004, str(size))
    assert found["sent"] == found["got"]
    assert mesh.client("shop/client", "fetch", "web", 7005, str(size))["bytes"] == size


def test_a_reset_arrives_as_a_reset(mesh: Mesh) -> None:
    assert mesh.client("shop/client", "reset", "web", 7006)["end"] == "reset"


def test_many_short_connections_at_once(mesh: Mesh) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: mesh.client("shop/client", "many", "web", 7001, "100"), range(8)))
    assert sum(result["failed"] for result in results) == 0


def test_a_port_that_nobody_serves_is_reset_and_named(mesh: Mesh) -> None:
    found = mesh.client("shop/client", "try_connect", mesh.ips("shop/web")[0], 7999)
    assert found["outcome"] in ("ConnectionResetError", "ConnectionRefusedError")
    assert found["after"] < 2
    asked = {"dst__addr": f"{mesh.ips('shop/web')[0]}:15008", "dst__hbone_addr": f"{mesh.ips('shop/web')[0]}:7999"}
    assert mesh.logged("node-b", **asked)["reason"] == "connect_refused"
    assert mesh.logged("node-a", **asked)["reason"] == "peer_unavailable"


def test_a_pod_reaches_its_own_loopback_and_itself(mesh: Mesh) -> None:
    for address in ("127.0.0.1", "::1", *mesh.ips("shop/web"), "web"):
        assert mesh.client("shop/web", "names", address, 7001)["peer"][1] == 7001


def test_destinations_outside_of_the_mesh_are_reached_in_plain(mesh: Mesh) -> None:
    own = mesh.ips("shop/client")[0]
    target = mesh.ips("legacy/server")[0]
    seen = mesh.client("shop/client", "names", target, 7001)
    assert seen["server"]["peer"][0].removeprefix("::ffff:") == own
    assert seen["peer"] == [target, 7001]
    assert mesh.client("shop/client", "half_close", "server.legacy", 7001)["rest"] == "last wordseof"


def test_pods_outside_of_the_mesh_notice_nothing(mesh: Mesh) -> None:
    before = len(mesh.access_log("node-a"))
    seen = mesh.client("legacy/outside", "names", mesh.ips("legacy/server")[0], 7001)
    assert seen["server"]["peer"][0].removeprefix("::ffff:") == mesh.ips("legacy/outside")[0]
    assert seen["server"]["peer"][1] == seen["own"][1]
    assert len(mesh.access_log("node-a")) == before


def test_a_permissive_pod_is_reached_from_outside_with_the_true_address(mesh: Mesh) -> None:
    seen = mesh.client("legacy/outside", "names", mesh.ips("shop/web")[0], 7001)
    assert seen["server"]["peer"][0].removeprefix("::ffff:") == mesh.ips("legacy/outside")[0]
    assert seen["server"]["peer"][1] == seen["own"][1]


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_mesh_ports_are_no_way_in(mesh: Mesh, port: int) -> None:
    for pod, host in (("shop/web", "127.0.0.1"), ("shop/client", mesh.ips("shop/web")[0])):
        found = mesh.client(pod, "try_connect", host, port)
        assert found["outcome"] != "answered"


def test_an_app_that_never_reads_holds_up_nobody_else(mesh: Mesh) -> None:
    filling = mesh.start("shop/client", "sh", "-c", "head -c 500000000 /dev/zero | socat -u - TCP:web:7003")
    try:
        assert mesh.client("shop/client", "many", "web", 7001, "50")["failed"] == 0
        size = 16 << 20
        assert mesh.client("shop/client", "fetch", "web", 7005, str(size))["bytes"] == size
        assert mesh.metrics("node-b", "culvert_buffered_bytes") < 64 << 20
    finally:
        filling.terminate()
        filling.communicate(timeout=10)
