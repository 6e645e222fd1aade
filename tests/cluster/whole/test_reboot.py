"""A node loses its power and starts again: its pods are in the mesh before they say a word."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bpf.paths import BPFFS, RUNTIME, escape
from tests.cluster.kube.network import LINK
from tests.cluster.whole.objects import container, pod, service
from tests.cluster.whole.stage import CLIENT, SHOP, SYSTEM, WEB, Whole
from tests.cluster.whole.traffic import steady

pytestmark = [pytest.mark.root, pytest.mark.slow]

MARKER, CONTROL = "culvert-reboot-marker", "culvert-control-marker"

# Talks from its first moment on, without waiting for anybody: by address, because names are not resolved yet.
EAGER = """
import sys, time, urllib.request
while True:
    try: urllib.request.urlopen(sys.argv[1], timeout=5).read()
    except OSError: pass
    time.sleep(0.05)
"""


def test_after_a_reboot_pods_are_captured_again_and_nothing_has_left_in_clear(mesh: Whole, tmp_path: Path) -> None:
    rebooted, other = mesh.place.nodes
    serve = container("python", ["python3", "-m", "http.server", "8080"])
    mesh.cluster.apply([service("far", 8080), pod("far", other.name, serve)])
    mesh.ready("far")
    address = mesh.cluster.get("service", "-n", SHOP, "far")["spec"]["clusterIP"]
    eager = container("python", ["python3", "-c", EAGER, f"http://{address}/{MARKER}"])
    mesh.cluster.apply([pod("eager", rebooted.name, eager)])
    mesh.ready("eager")
    client = mesh.pod(CLIENT)["status"]["podIP"]
    before = {names: mesh.pod(*names) for names in (("web", SHOP), ("eager", SHOP), ("server", "legacy"))}
    with captured(mesh, f"tcp and (net {rebooted.pods4} or host {client})", tmp_path) as capture:
        with steady(mesh, f"{WEB}{MARKER}") as traffic:
            traffic.go_on()
            lose_power(mesh)
            assert not (BPFFS / "culvert" / escape(rebooted.name)).exists()
            mesh.cluster.power_on(0)
            for names, old in before.items():
                mesh.until(f"{names} runs anew", partial(has_restarted, mesh, old))
                mesh.ready(*names)
            mesh.until("the node's own pod", lambda: mesh.is_ready(mesh.node_pod(rebooted)["metadata"]["name"], SYSTEM))
            mesh.until("an answer over the mesh", lambda: mesh.status_of(WEB) == "200")
            traffic.go_on()
            traffic.stop()
        mesh.until("both directions in the access log", lambda: carried(mesh) == {"inbound", "outbound"}, 30)
        address = mesh.pod("server", "legacy")["status"]["podIP"]
        mesh.status_of(f"http://{address}:9000/{CONTROL}", "outsider", "legacy")
    assert [mesh.capture(*names) for names in before] == ["enabled", "enabled", ""]
    assert traffic.good and traffic.bad, "it was seen before, during and after"
    sent = capture.read_bytes()
    assert CONTROL.encode() in sent, "the capture shows what passes in clear"
    assert MARKER.encode() not in sent
    assert (BPFFS / "culvert" / escape(rebooted.name)).exists()
    done = mesh.culvert("check")
    assert not done.returncode, done.stdout
    mesh.cluster.kubectl("delete", "pod,service", "-n", SHOP, "far")
    mesh.cluster.kubectl("delete", "pod", "-n", SHOP, "eager")


def lose_power(mesh: Whole) -> None:
    """Everything that a machine has in memory is gone: processes, namespaces, /run and what is pinned."""
    node = mesh.place.nodes[0]
    mesh.cluster.power_off(0)
    shutil.rmtree(BPFFS / "culvert" / escape(node.name))
    shutil.rmtree(RUNTIME / node.name)


def has_restarted(mesh: Whole, old: dict[str, Any]) -> bool:
    """A pod outlives its node's reboot as an object; its containers do not."""
    (was,) = old["status"]["containerStatuses"]
    (now,) = mesh.pod(old["metadata"]["name"], old["metadata"]["namespace"])["status"]["containerStatuses"]
    return bool(now["containerID"] != was["containerID"] and "running" in now["state"])


def carried(mesh: Whole) -> set[str]:
    """In which directions the new ztunnel of the node has carried something well."""
    lines = mesh.access_log(mesh.place.nodes[0])
    return {str(line["direction"]) for line in lines if line["reason"] == "ok" and line["src.identity"]}


@contextmanager
def captured(mesh: Whole, expression: str, folder: Path) -> Iterator[Path]:
    """What passes the link of the node that stays, complete when the block ends."""
    path = folder / "link.pcap"
    words = ["tcpdump", "--immediate-mode", "-Z", "root", "-U", "-s0", "-i", LINK, "-w", str(path), expression]
    command = ["nsenter", f"--net={mesh.place.nodes[1].netns}", *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            assert any(b"listening" in line for line in iter(process.stderr.readline, b"")), "tcpdump does not start"
            yield path
            time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)
