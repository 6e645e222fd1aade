"""Claims: what passes between the nodes is TLS 1.3 with ALPN h2, and both ends are who they say."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cli.demo.report import Claim
from cli.demo.stage import Stage, StageFault

SECRET = "culvert-demo-plaintext-marker"


def claims(stage: Stage) -> Iterator[Claim]:
    """Group 2 of the demo; first of all to run, so that the handshakes are in the capture."""
    start = {node: stage.log_end(node) for node in ("node-1", "node-2")}
    with stage.capture() as capture:
        done = stage.run(stage.client, "curl", "-sS", "-m", "10", f"http://web/{SECRET}")
        stage.run(stage.client, "redis-cli", "-h", "redis", "set", SECRET, SECRET)
    if SECRET not in done.out:
        raise StageFault(f"no traffic to look at: {done.words}")
    hits = capture.read_bytes().count(SECRET.encode())
    size = capture.stat().st_size
    yield Claim(
        "the capture between the nodes holds no byte of plaintext",
        hits == 0,
        f"marker seen {hits} times in {size} bytes",
    )
    yield _only_tunnels(stage, capture)
    yield from _handshakes(capture)
    yield _control(stage)
    yield from _identities(stage, start)
    yield _independent(stage)


def _only_tunnels(stage: Stage, capture: Path) -> Claim:
    pods = [ip for path in ("shop/client", "shop/web", "shop/redis") for ip in stage.pod(path)["ips"]]
    hosts = " or ".join(f"host {ip}" for ip in pods)
    tunnel = packets(capture, f"tcp port 15008 and ({hosts})")
    other = packets(capture, f"tcp and not port 15008 and ({hosts})")
    evidence = f"{tunnel} packets on port 15008, {other} elsewhere"
    return Claim("all TCP of the pods travels on port 15008", tunnel > 0 and other == 0, evidence)


def packets(capture: Path, expression: str) -> int:
    """How many packets of a capture match."""
    command = ["tcpdump", "-nr", str(capture), expression]
    return len(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout.splitlines())


def _handshakes(capture: Path) -> Iterator[Claim]:
    fields = ("tls.handshake.type", "tls.handshake.extensions.supported_version", "tls.handshake.extensions_alpn_str")
    command = ["tshark", "-r", str(capture), "-d", "tcp.port==15008,tls", "-Y", "tls.handshake", "-T", "fields"]
    for name in fields:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    hellos = [row for row in rows if row[0].startswith("1")]
    answers = [row for row in rows if row[0].startswith("2")]
    versions = {row[1] for row in answers}
    yield Claim(
        "every server hello chooses TLS 1.3",
        bool(answers) and versions == {"0x0304"},
        f"{len(answers)} server hellos, versions {sorted(versions)}",
    )
    offered = {row[2] for row in hellos}
    yield Claim(
        "every client hello offers ALPN h2 and nothing else",
        bool(hellos) and offered == {"h2"},
        f"{len(hellos)} client hellos, ALPN {sorted(offered)}",
    )


def _control(stage: Stage) -> Claim:
    ip = stage.pod("legacy/server")["ips"][0]
    with stage.capture() as capture, stage.held("legacy/outsider", ip, 9000) as connection:
        connection.say(SECRET)
    hits = capture.read_bytes().count(SECRET.encode())
    return Claim(
        "(the same capture does see plaintext where there is some: between pods outside the mesh)",
        hits > 0,
        f"marker seen {hits} times",
    )


def _identities(stage: Stage, start: dict[str, int]) -> Iterator[Claim]:
    wanted = {
        "src.identity": "spiffe://cluster.local/ns/shop/sa/client",
        "dst.identity": "spiffe://cluster.local/ns/shop/sa/web",
    }
    for node, side in (("node-2", "outbound"), ("node-1", "inbound")):
        lines = [
            line
            for line in stage.log(node, start[node]).splitlines()
            if f"direction={side}" in line and "dst.workload=web" in line
        ]
        found = dict(re.findall(r"([a-z._]+)=\"?([^\s\"]+)", lines[0])) if lines else {}
        seen = {name: found.get(name, "") for name in wanted}
        yield Claim(f"the {side} end recorded both service accounts", seen == wanted, f"{node}: {seen}")


def _independent(stage: Stage) -> Claim:
    ip = stage.pod("shop/web")["ips"][0]
    dial = f"openssl s_client -connect {ip}:15008 -alpn h2 </dev/null 2>/dev/null"
    script = f"{dial} | openssl x509 -noout -ext subjectAltName"
    done = stage.run("legacy/outsider", "sh", "-c", script)
    good = "URI:spiffe://cluster.local/ns/shop/sa/web" in done.out
    return Claim(
        "an independent TLS client that dials 15008 is shown the pod's identity",
        good,
        f"openssl: {' '.join(done.out.split())}",
    )
