"""Connections opened without the sockets that capture sees: the guard keeps them in the pod, whoever sends them.

Topology: see mesh_stage.py. The attacker is shop/client with every capability in its own namespace; what is listened to
is the link between the nodes, where all that leaves node-a towards shop/web would pass.
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import APPS, Mesh, link
from tests.node.policies import REFUSED, from_account, outcome, policy
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]  # the lock may be another run's for a while


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("guard", tmp_path_factory.mktemp("guard")) as running:
        yield running


@contextmanager
def nothing_in_clear(mesh: Mesh, folder: Path) -> Iterator[None]:
    """Between the nodes no TCP but HBONE passes to or from shop/web while the block runs."""
    web4, web6 = mesh.ips("shop/web")
    with link(
        mesh, "node-a", folder / "clear.pcap", f"(host {web4} or host {web6}) and tcp and not port 15008"
    ) as seen:
        yield
        assert seen() == ""


def dropped(mesh: Mesh, reason: str) -> int:
    text = mesh.run("node/node-a", "curl", "-s", "http://127.0.0.1:15022/metrics").stdout
    name = f'culvert_agent_guard_dropped_total{{reason="{reason}"}} '
    return int(next(line.removeprefix(name) for line in text.splitlines() if line.startswith(name)))


def test_every_captured_pod_is_guarded_and_others_are_not_touched(mesh: Mesh) -> None:
    states = {f"{pod['namespace']}/{pod['name']}": pod["mesh"] for pod in mesh.status()["pods"]}
    assert {name for name, state in states.items() if state["state"] == "captured"} == {
        "shop/client",
        "shop/other",
        "shop/web",
    }
    assert [name for name, state in states.items() if state["unguarded"]] == []
    assert "without guard" not in mesh.command("lab", "status").stdout
    assert mesh.client("legacy/outside", "try_connect", mesh.ips("legacy/server")[0], 7001)["outcome"] == "answered"


@pytest.mark.parametrize("index", [0, 1], ids=["v4", "v6"])
@pytest.mark.parametrize(("case", "reason"), [("raw", "stranger"), ("framed", "stranger"), ("tagged", "unreadable")])
def test_segments_made_by_hand_open_nothing(mesh: Mesh, tmp_path: Path, case: str, index: int, reason: str) -> None:
    words = ("python3", str(APPS / "openings.py"), case, mesh.ips("shop/web")[index])
    before = dropped(mesh, reason)
    with nothing_in_clear(mesh, tmp_path):
        done = mesh.run("shop/client", *words, mesh.ips("shop/client")[index])
        assert done.stdout == "sent\n", done.stderr
        eventually(lambda: dropped(mesh, reason) > before)


def test_the_same_segments_leave_a_pod_that_is_not_captured(mesh: Mesh, tmp_path: Path) -> None:
    """So that the tests above say something."""
    web = mesh.ips("shop/web")[0]
    with link(mesh, "node-a", tmp_path / "open.pcap", f"host {web} and tcp and not port 15008") as seen:
        for case in ("raw", "framed"):
            done = mesh.run(
                "legacy/outside", "python3", str(APPS / "openings.py"), case, web, mesh.ips("legacy/outside")[0]
            )
            assert done.stdout == "sent\n", done.stderr
        time.sleep(0.3)
        assert seen().count(f"> {web}.7001: Flags [S]") >= 2


NEST = """
unshare -n sleep 20 & inner=$!
trap 'kill $inner; nft delete table ip nest' EXIT
until nsenter -t $inner -n true 2>/dev/null && [ "$(readlink /proc/$inner/ns/net)" != "$(readlink /proc/self/ns/net)" ]
do sleep 0.05; done
ip link add in0 type veth peer name eth0 netns $inner
ip addr add 10.78.0.1/24 dev in0; ip link set in0 up
nsenter -t $inner -n sh -ec 'ip addr add 10.78.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.78.0.1'
echo 1 > /proc/sys/net/ipv4/ip_forward
nft 'add table ip nest; add chain ip nest out { type nat hook postrouting priority 100; };
     add rule ip nest out oifname eth0 masquerade'
nsenter -t $inner -n python3 "$1" try_connect "$2" 7001 5
"""


def test_a_namespace_nested_in_the_pod_reaches_nobody(mesh: Mesh, tmp_path: Path) -> None:
    before = dropped(mesh, "forwarded")
    with nothing_in_clear(mesh, tmp_path):
        done = mesh.run("shop/client", "sh", "-ec", NEST, "sh", str(APPS / "client.py"), mesh.ips("shop/web")[0])
        assert "outcome" in done.stdout, done.stderr
        assert "answered" not in done.stdout
    assert dropped(mesh, "forwarded") > before


TRANSLATE = """
echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
trap 'nft delete table ip own' EXIT
nft "add table ip own; add chain ip own out { type nat hook output priority -100; };
     add rule ip own out $1 dnat to $2:7001;
     add chain ip own post { type nat hook postrouting priority 100; }; add rule ip own post oifname eth0 masquerade"
python3 "$3" try_connect "$4" "$5" 5
"""


def test_what_the_pod_translates_does_not_leave_it(mesh: Mesh, tmp_path: Path) -> None:
    """Its captured connects, and the connects that ztunnel makes for it in clear."""
    web, server = mesh.ips("shop/web")[0], mesh.ips("legacy/server")[0]
    client = str(APPS / "client.py")
    with nothing_in_clear(mesh, tmp_path):
        for rule, host, port, reason in (
            ("ip daddr 127.0.0.0/8 tcp dport 15001", web, "7001", "stranger"),
            (f"ip daddr {server} tcp dport 7002", server, "7002", "rewritten"),
        ):
            before = dropped(mesh, reason)
            done = mesh.run("shop/client", "sh", "-ec", TRANSLATE, "sh", rule, web, client, host, port)
            assert "outcome" in done.stdout, done.stderr
            assert "answered" not in done.stdout
            assert dropped(mesh, reason) > before, rule
    assert outcome(mesh, "shop/client") == "answered"


def test_identity_does_not_follow_a_neighbours_address(mesh: Mesh) -> None:
    """shop/other dials as shop/client, whose account alone is allowed; it is known as what it is."""
    faked = mesh.ips("shop/client")[0]
    words = ("sh", "-ec", 'ip addr add "$1"/32 dev eth0; python3 -c "$2"; ip addr del "$1"/32 dev eth0', "sh", faked)
    dial = (
        "import socket; s = socket.socket(); s.settimeout(5); s.bind(('{}', 0)); print('try', flush=True)\n"
        "try:\n s.connect(('{}', 7001)); print('answered' if s.recv(9) else 'closed')\n"
        "except OSError as error: print(type(error).__name__)"
    ).format(faked, mesh.ips("shop/web")[0])
    with mesh.applied(policy("only-client", **{"from": from_account("client")})):
        eventually(lambda: outcome(mesh, "shop/other") in REFUSED)
        done = mesh.run("shop/other", *words, dial)
        assert done.stdout.split()[0] == "try", done.stderr
        assert done.stdout.split()[1] in REFUSED
        line = mesh.logged("node-b", src__identity="spiffe://cluster.local/ns/shop/sa/other", reason="policy_denied")
        assert line["src.identity"].endswith("/other")
        assert outcome(mesh, "shop/client") == "answered"


def test_a_pod_reaches_itself_by_its_services_name_and_address(mesh: Mesh) -> None:
    for host in ("web", mesh.ips("shop/web")[0]):
        assert mesh.client("shop/web", "try_connect", host, 7001)["outcome"] == "answered"


def test_link_local_destinations_do_not_leave_the_pod(mesh: Mesh, tmp_path: Path) -> None:
    dial = (
        "import socket; s = socket.socket(socket.AF_INET6); s.settimeout(5)\n"
        "try:\n s.connect(('fe80::1', 7001, 0, socket.if_nametoindex('eth0')))\n"
        " print('answered' if s.recv(9) else 'closed')\n"
        "except OSError as error: print(type(error).__name__)"
    )
    with link(mesh, "node-a", tmp_path / "local.pcap", "ip6 and tcp and host fe80::1") as seen:
        assert mesh.run("shop/client", "python3", "-c", dial).stdout.strip() != "answered"
        assert seen() == ""


def test_half_a_minute_without_a_ztunnel_that_hangs_is_waited_out(mesh: Mesh, tmp_path: Path) -> None:
    """New connections wait or are refused, none leaves in clear, all resumes; who is outside notices nothing."""
    pid = mesh.pid("node-a", "ztunnel")
    with nothing_in_clear(mesh, tmp_path):
        os.kill(pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(4) as pool:
                tries = [pool.submit(outcome, mesh, "shop/client") for _ in range(3)]
                assert outcome(mesh, "legacy/outside", host=mesh.ips("legacy/server")[0]) == "answered"
                assert {one.result() for one in tries}.isdisjoint({"answered"})
            time.sleep(max(0.0, 30 - 15))
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: outcome(mesh, "shop/client") == "answered", 10)
    assert mesh.pid("node-a", "ztunnel") == pid, "it went on, nobody replaced it"


def test_an_agent_that_hangs_holds_up_no_connection_and_goes_on(mesh: Mesh, tmp_path: Path) -> None:
    pid = mesh.pid("node-a", "agent")
    before = dropped(mesh, "stranger")
    with nothing_in_clear(mesh, tmp_path):
        os.kill(pid, signal.SIGSTOP)
        try:
            assert outcome(mesh, "shop/client") == "answered"
            words = (
                "python3",
                str(APPS / "openings.py"),
                "raw",
                *(mesh.ips(p)[0] for p in ("shop/web", "shop/client")),
            )
            assert mesh.run("shop/client", *words).stdout == "sent\n"
        finally:
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: dropped(mesh, "stranger") > before)
    assert mesh.pid("node-a", "agent") == pid
