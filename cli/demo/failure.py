"""Claims: when ztunnel is killed nothing goes out in clear, and it is back at once."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cli.demo.report import Claim
from cli.demo.stage import Stage, environment, until
from cli.demo.wire import packets


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 8 of the demo."""
    pods = [ip for path in ("shop/app", "shop/client") for ip in stage.pod(path)["ips"]]
    hosts = " or ".join(f"host {ip}" for ip in pods)
    outside = f"tcp and ({hosts}) and not port 15008"
    legacy = stage.pod("legacy/server")["ips"][0]
    deaths = _deaths(stage)
    yield Claim("no component of the mesh has died until here", not deaths, ", ".join(deaths) or "no restarts")
    victim = stage.component("node-2", "ztunnel")["pid"]
    with stage.capture(outside) as capture, stage.held("legacy/outsider", legacy, 9000) as bystander:
        prober = subprocess.Popen(
            stage.command(stage.client, "python3", "-c", PROBER, stage.vips("app")[0], str(stage.restart_s)),
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert prober.stdout is not None
        prober.stdout.readline()
        os.kill(victim, signal.SIGKILL)
        killed = time.time()
        seen = [line.split() for line in prober.communicate(timeout=stage.restart_s + 26)[0].splitlines()]
        bystander_answer = bystander.say("still-here")
    after = [(float(when) - killed, word) for when, word, _ in seen if float(when) > killed]
    failures = [(when, word) for when, word in after if word != "ok"]
    slow = [float(took) for when, word, took in seen if word != "ok"]
    back = next((when for when, word in after if failures and word == "ok" and when > failures[-1][0]), None)
    words = sorted({word for _, word in failures})
    yield Claim(
        "new connections are refused at once while it is gone",
        bool(failures) and max(slow) < 0.5,
        f"{len(failures)} refused ({', '.join(words)}), slowest {max(slow, default=0):.3f} s",
    )
    clear = packets(capture, "")
    yield Claim("none goes out in clear", clear == 0, f"{clear} packets of these pods outside port 15008")
    restarted, _ = until(5, lambda: stage.component("node-2", "ztunnel")["pid"] not in (None, victim))
    started = _started(stage.component("node-2", "ztunnel")["pid"]) - killed if restarted else 0.0
    yield Claim(
        f"after its supervisor has started it again they work within {stage.recovery_s:g} s",
        back is not None and back - started < stage.recovery_s,
        f"{back - started:.2f} s after its start, {back:.2f} s after the kill"
        if back
        else f"not within {stage.restart_s:g} s",
    )
    yield Claim("a pod outside the mesh notices nothing", bystander_answer == "still-here", f"echo: {bystander_answer}")
    yield Claim(
        "it runs again under its supervisor", restarted, f"restarts: {stage.component('node-2', 'ztunnel')['restarts']}"
    )


def _started(pid: int) -> float:
    """When a process began, in seconds since the epoch."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _deaths(stage: Stage) -> list[str]:
    status = stage.status()
    parts = {"controller": status["mesh"]["components"]["controller"]}
    for node in status["nodes"]:
        parts |= {f"{node['name']}/{name}": state for name, state in node["components"].items()}
    return [f"{name}: {s['restarts']} times, last {s['last_end']}" for name, s in parts.items() if s["restarts"]]


PROBER = """
import socket, sys, time
print("go", flush=True)
end = time.time() + float(sys.argv[2])
while time.time() < end:
    start = time.time()
    try:
        with socket.create_connection((sys.argv[1], 9000), 2) as sock:
            sock.sendall(b"who\\n")
            word = "ok" if sock.recv(1000) else "closed"
    except OSError as error:
        word = type(error).__name__
    print(start, word, time.time() - start, flush=True)
    time.sleep(0.02)
"""
