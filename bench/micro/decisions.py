"""What does a decision cost, what a change of the mesh, and what a workload, when there are many?

Measured alone, on one core: the engine's route and judge (C, called from C), the Python reference of both, reading and
writing a socket's note (a system call), taking in N workloads and as many policies, and one further change: parsed,
joined, compiled and cloned for publication. Memory is what the process grew by, Python's store and the engine's tables.

Numbers that would change a decision: a route or verdict above 1 us at 10,000 workloads, a change above 20 ms, or a
workload above 3 KB.

    python -m bench.micro.decisions --workloads 10000 --json bench/results/decisions.json
"""

import argparse
import ctypes
import fcntl
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from bench import machine
from bpf import kernel
from bpf.layout import CNote
from bpf.paths import NodePaths
from mesh.wire import authorization_pb2 as security
from tests.unit.ztunnel.mesh_builder import Lab, authorization, ip, service, workload
from ztunnel.decide import Destination, Peer, inbound, outbound

TURNS = 200_000
PYTHON_TURNS = 5_000
REPEATS = 5
PER_SERVICE = 10
CHURN = 50
LOCK = Path("/run/lock/culvert-test.lock")
BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM = 1, 2

Figures = dict[str, float]


def pod_ip(number: int) -> str:
    """Address of the pod of a number."""
    return str(IPv4Address("10.64.0.0") + number)


def vip(number: int) -> str:
    """Address of the service of a number."""
    return str(IPv4Address("10.200.0.0") + number)


def pod(number: int, waypoint_port: int = 8080) -> Any:
    """One of the mesh's pods; one in a hundred runs on this node."""
    where = "node-a" if number % 100 == 0 else f"node-{number % 100}"
    services = {f"shop/s{number // PER_SERVICE}.shop": {80: waypoint_port}}
    account = f"account-{number % 500}"
    return workload(f"p{number}", pod_ip(number), node=where, services=services, service_account=account)


def policy(number: int) -> Any:
    """A policy that lets one service account in, in a namespace of its own but for the first ten."""
    match = security.Match(principals=[security.StringMatch(exact=f"cluster.local/ns/shop/sa/account-{number}")])
    rule = security.Rule(clauses=[security.Clause(matches=[match])])
    return authorization(f"allow-{number}", rule, namespace="shop" if number < 10 else f"other-{number}")


def resident_kib() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def per_turn_us(measure: Callable[[], float], turns: int) -> float:
    """Median over repeats of what one turn takes."""
    return round(statistics.median(measure() for _ in range(REPEATS)) / turns / 1000, 4)


def take_in(count: int) -> tuple[Lab, Figures]:
    """Build the mesh, and what that took."""
    messages = [*(pod(n) for n in range(count)), *(service(f"s{n}", vip(n)) for n in range(count // PER_SERVICE))]
    policies = [policy(n) for n in range(count)]
    lab = Lab(workload("warm", "10.63.0.1"))
    before, began = resident_kib(), time.monotonic()
    lab.put(*messages)
    after, addresses_s = resident_kib(), time.monotonic() - began
    lab.put(*policies)
    figures = {
        "ingest_workloads_s": round(addresses_s, 3),
        "ingest_policies_s": round(time.monotonic() - began - addresses_s, 3),
        "bytes_per_workload": round((after - before) * 1024 / count),
        "bytes_per_policy": round((resident_kib() - after) * 1024 / count),
    }
    return lab, figures


def churn(lab: Lab, count: int) -> Figures:
    """One workload changes, until the snapshot is there to publish."""
    times = []
    for turn in range(CHURN):
        changed = pod((turn * 7919) % count, waypoint_port=8081 + turn % 2)
        began = time.monotonic()
        lab.put(changed)
        times.append((time.monotonic() - began) * 1000)
    return {"change_ms_p50": round(statistics.median(times), 3), "change_ms_max": round(max(times), 3)}


def decisions(lab: Lab, count: int, timing: ctypes.CDLL) -> Figures:
    """Routes to pods and services, and verdicts, in C and in Python."""
    from engine._border import ffi, lib  # noqa: PLC0415  must be the one that the lab has loaded

    def address(value: Any) -> int:
        return int(ffi.cast("uintptr_t", value))

    source = lab.number("p0")
    picks = [(n * 7919) % count for n in range(1000)]
    pods = [Destination(ip(pod_ip(n)), 8080) for n in picks]
    vips = [Destination(ip(vip(n // PER_SERVICE)), 80) for n in picks]
    endpoint = "struct cv_endpoint[]"
    peers = [Peer(f"spiffe://cluster.local/ns/shop/sa/account-{n % 500}", ip(pod_ip(n))) for n in picks]
    names = [ffi.new("char[]", (peer.identity or "").encode()) for peer in peers]
    raw_peers = ffi.new("struct cv_peer[]", [(n, list(p.ip)) for n, p in zip(names, peers, strict=True)])
    here = ffi.new(endpoint, [(list(pods[0].ip), pods[0].port)])
    figures: Figures = {}
    for name, targets in (("pod", pods), ("service", vips)):
        raw = ffi.new(endpoint, [(list(target.ip), target.port) for target in targets])
        arguments = (address(ffi.addressof(lib, "cv_tables_route")), address(lab.tables), source, address(raw), 1000)
        figures[f"route_to_{name}_us"] = per_turn_us(partial(timing.time_route, *arguments, TURNS), TURNS)
        figures[f"route_to_{name}_python_us"] = per_turn_us(partial(_python_routes, lab, source, targets), PYTHON_TURNS)
    judge = (address(ffi.addressof(lib, "cv_tables_judge")), address(lab.tables), source, address(raw_peers), 1000)
    figures["judge_us"] = per_turn_us(partial(timing.time_judge, *judge, address(here), TURNS), TURNS)
    figures["judge_python_us"] = per_turn_us(partial(_python_verdicts, lab, source, peers, pods[0]), PYTHON_TURNS)
    return figures


def _python_routes(lab: Lab, source: int, targets: list[Destination]) -> float:
    began = time.monotonic_ns()
    for turn in range(PYTHON_TURNS):
        outbound(lab.store, source, targets[turn % len(targets)], turn << 40)
    return time.monotonic_ns() - began


def _python_verdicts(lab: Lab, number: int, peers: list[Peer], destination: Destination) -> float:
    began = time.monotonic_ns()
    for turn in range(PYTHON_TURNS):
        inbound(lab.store, number, peers[turn % len(peers)], destination)
    return time.monotonic_ns() - began


@contextmanager
def notes_map() -> Iterator[int]:
    """A loaded set of programs of our own; yields its map of notes."""
    key = f"cvb-micro-{os.getpid()}"
    loader = [sys.executable, "-m", "bpf.loader"]
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            subprocess.run([*loader, "load", "--node", key], check=True, capture_output=True)
            map_fd = kernel.open_pin(NodePaths(key).maps / "notes")
            yield map_fd
            os.close(map_fd)
        finally:
            subprocess.run([*loader, "unload", "--node", key], check=True, capture_output=True)


def notes(timing: ctypes.CDLL) -> Figures:
    """What ztunnel does per socket with the kernel's map."""
    figures: Figures = {}
    note = CNote()
    with notes_map() as map_fd, socket.socket() as own:
        for name, command in (("write", BPF_MAP_UPDATE_ELEM), ("read", BPF_MAP_LOOKUP_ELEM)):
            arguments = (command, map_fd, own.fileno(), ctypes.byref(note), TURNS)
            figures[f"note_{name}_us"] = per_turn_us(partial(timing.time_note, *arguments), TURNS)
            if not figures[f"note_{name}_us"]:
                raise RuntimeError(f"the kernel refuses to {name} a note")
    return figures


def build_timing(folder: Path) -> ctypes.CDLL:
    """The loops in C."""
    library = folder / "timing.so"
    source = Path(__file__).with_name("timing.c")
    include = machine.ROOT / "engine" / "include"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", f"-I{include}", "-o", str(library), str(source)], check=True)
    timing = ctypes.CDLL(str(library))
    pointer, number = ctypes.c_void_p, ctypes.c_uint32
    timing.time_route.argtypes = [pointer, pointer, number, pointer, number, number]
    timing.time_judge.argtypes = [pointer, pointer, number, pointer, number, pointer, number]
    timing.time_note.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, number]
    for function in (timing.time_route, timing.time_judge, timing.time_note):
        function.restype = ctypes.c_uint64
    return timing


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", type=int, nargs="+", default=[10, 10_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = machine.facts() | {"busy_with_others": machine.wait_until_quiet(20.0)}
    with tempfile.TemporaryDirectory(prefix="culvert-bench-") as folder:
        timing = build_timing(Path(folder))
        for count in options.workloads:
            lab, figures = take_in(count)
            record[f"workloads_{count}"] = figures | churn(lab, count) | decisions(lab, count, timing)
        if os.geteuid() == 0:
            record["notes"] = notes(timing)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
