"""What does the data path itself add to a connection between two nodes?

Path measured: application -> engine (client role) -> veth, TLS 1.3, HTTP/2 -> engine (server role) -> application,
beside the same two applications over the same veth directly. No programs and no control plane: what BPF and Python
cost is measured elsewhere. One worker each, client side on CPU 0, server side on CPU 1, rounds interleaved, medians.

A ratio of added p50 above 2.5 to the direct path, or bulk below 0.2 of it, would send us back to the data path.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import load

NAMES = {"client": f"cvb-{os.getpid()}-a", "server": f"cvb-{os.getpid()}-b"}
IPS = {"client": "10.77.0.1", "server": "10.77.0.2"}
CPUS = {"client": 0, "server": 1}
VIP, PORT = "127.0.0.99", 9000


def run(*command: str) -> str:
    """A command's output; raises when it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inside(side: str, *command: str, pin: bool = True) -> list[str]:
    """The command, in the namespace and on the CPU of a side."""
    taskset = ["taskset", "-c", str(CPUS[side])] if pin else []
    return ["nsenter", f"--net=/run/netns/{NAMES[side]}", *taskset, *command]


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces and a veth between them."""
    try:
        for name in NAMES.values():
            run("ip", "netns", "add", name)
        a, b = NAMES.values()
        run("ip", "-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
        for side, name in NAMES.items():
            run("ip", "-n", name, "addr", "add", f"{IPS[side]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run("ip", "-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in NAMES.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def process(command: list[str], ready: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A child that ends with the block; `ready`: it prints a line when it is."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if ready and child.stdout:
            child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.wait()


def node(side: str, workers: int, spin_us: int, material: Path) -> None:
    """The child: one engine, until killed."""
    from tests.support.engine import Engine  # noqa: PLC0415
    from tests.support.pki import Credential, spiffe  # noqa: PLC0415
    from tests.support.sockets import HBONE, listen  # noqa: PLC0415
    from tests.support.tables import Tables  # noqa: PLC0415

    engine = Engine(workers=workers, spin_us=spin_us, max_connections_per_pod=20000)
    ids = {name: spiffe(name) for name in IPS}
    parts = [(material / f"{side}-{part}").read_text() for part in ("chain", "key", "roots")]
    assert not engine.put_identity(ids[side], Credential(*parts))
    tables = Tables()
    for number, name in enumerate(IPS, 1):
        tables.workload(number, name, ids[name], IPS[name])
    engine.publish(tables.service(9, VIP, PORT, (2, PORT)))
    if side == "client":
        engine.add_pod(1, side, ids[side], outbound=listen(VIP, PORT))
    else:
        engine.add_pod(2, side, ids[side], hbone=listen(IPS[side], HBONE))
    print("ready", flush=True)
    while True:
        engine.poll_events(0.2)
        engine.seen.clear()


def write_material(into: Path) -> None:
    """Certificates of both sides, for the children to read."""
    from tests.support.pki import Authority, spiffe  # noqa: PLC0415

    authority = Authority()
    for side in IPS:
        made = authority.issue(spiffe(side))
        for part in ("chain", "key", "roots"):
            (into / f"{side}-{part}").write_text(getattr(made, part))


def measure(program: Path, address: str, seconds: float) -> dict[str, float]:
    """One round over one path."""

    def go(mode: str, *arguments: str) -> dict[str, float]:
        out = run(*inside("client", str(program), mode, address, str(PORT), str(seconds), *arguments))
        return dict(json.loads(out))

    one = go("rr", "1024", "1")
    many = go("rr", "1024", "64")
    connects = go("crr")
    return {
        "rr_per_s": one["per_s"],
        "rr_p50_us": one["p50_us"],
        "rr_p99_us": one["p99_us"],
        "rr64_per_s": many["per_s"],
        "rr64_p99_us": many["p99_us"],
        "bulk_gbit_per_s": go("bulk", "1")["gbit_per_s"],
        "bulk8_gbit_per_s": go("bulk", "8")["gbit_per_s"],
        "connects_per_s": connects["per_s"],
    }


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def compare(rounds: int, seconds: float, workers: int, spin_us: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds, by path."""
    results: dict[str, list[dict[str, float]]] = {"direct": [], "engine": []}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = load.build(scratch)
        write_material(scratch)
        stack.enter_context(network())
        stack.enter_context(process(inside("server", str(program), "serve", IPS["server"], str(PORT)), ready=True))
        nodes = [
            stack.enter_context(
                process(
                    inside(
                        side,
                        sys.executable,
                        "-m",
                        "bench.path.engine_pair",
                        "--node",
                        side,
                        "--workers",
                        str(workers),
                        "--spin-us",
                        str(spin_us),
                        "--material",
                        str(scratch),
                        pin=workers == 1,
                    ),
                    ready=True,
                )
            )
            for side in IPS
        ]
        time.sleep(0.2)
        for _ in range(rounds):
            results["direct"].append(measure(program, IPS["server"], seconds))
            results["engine"].append(measure(program, VIP, seconds))
        memory = max(resident_mib(child.pid) for child in nodes)
    medians = {
        path: {key: statistics.median(one[key] for one in found) for key in found[0]} for path, found in results.items()
    }
    medians["engine"]["resident_mib_with_python"] = memory
    return medians


def main() -> None:
    """The command line; `--node` is how it starts its own children."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--spin-us", type=int, default=100)
    parser.add_argument("--node", choices=sorted(IPS))
    parser.add_argument("--material", type=Path)
    options = parser.parse_args()
    if options.node:
        node(options.node, options.workers, options.spin_us, options.material)
    medians = compare(options.rounds, options.seconds, options.workers, options.spin_us)
    record = {"host": socket.gethostname(), "kernel": os.uname().release, "settings": vars(options) | {"node": None}}
    print(json.dumps({**record, **medians}, indent=1, default=str))


if __name__ == "__main__":
    main()
