"""How long does a change at the API server take to the last of many ztunnels, and what does that cost the controller?

Path measured: writer -> kube-apiserver (real, etcd without fsync) -> controller (its own process) -> TLS streams of
delta ADS -> ztunnels of one Python process, which note when the mark of each change came. Two thirds of the changes are
pods that go and pods that come in their place, the rest labels, policies and endpoints. Time runs from before the
request that makes a change visible (of a pod that comes: the one that gives it its address) to the last ztunnel; API
server, ztunnels and controller share this machine.

Numbers that would change a decision: p99 above 250 ms, or more than 60 KB of the controller's memory per pod, at 10,000
pods, 100 nodes and 100 changes per second.

    python -m bench.path.control_plane --pods 10000 --nodes 100 --per-s 100 --json bench/results/control_plane.json
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import machine
from tests.cluster.alone import ApiAlone
from tests.cluster.scale.churn import Churn
from tests.cluster.scale.run import ControllerProcess, Ztunnels, populate, started
from tests.cluster.scale.world import World
from tests.cluster.scale.writer import Writer

# What the last changes may take. To say what they hold keeps a hundred ztunnels of one process busy for a second.
_LAST_S = 2.0


async def measure(options: argparse.Namespace, server: ApiAlone, folder: Path) -> dict[str, Any]:
    """One world, one churn, one restart."""
    world = World(options.pods, options.nodes)
    async with Writer(server.kubeconfig) as writer:
        result: dict[str, Any] = {"make_world_s": round(await populate(server, world, writer), 1)}
        async with started(server, folder, options.profile) as controller:
            connected_at = time.monotonic()
            async with Ztunnels(controller, options.nodes) as ztunnels:
                await ztunnels.at_rest()
                result["first_sync_s"] = round(time.monotonic() - connected_at, 1)
                result["churn"] = await _churn(options, Churn(world, writer), controller, ztunnels, server)
                resident, most = controller.memory_kb()
                result["memory"] = {"resident_kb": resident, "peak_kb": most}
                result["memory"]["peak_kb_per_pod"] = round(most / options.pods, 2)
                result["restart"] = await _restart(controller, ztunnels)
    return result


async def _churn(
    options: argparse.Namespace, churn: Churn, controller: ControllerProcess, ztunnels: Ztunnels, server: ApiAlone
) -> dict[str, Any]:
    parts = {"controller": controller.pid, "ztunnels": ztunnels.pid, "writer": os.getpid(), **server.pids()}
    before, meter = await ztunnels.ask("held"), machine.Meter()
    cpu = {name: machine.cpu_ms([pid]) for name, pid in parts.items()}
    started_at = time.monotonic()
    await churn.run(options.per_s, options.seconds)
    took_s = time.monotonic() - started_at
    reading = meter.read()
    cpu = {name: machine.cpu_ms([pid]) - cpu[name] for name, pid in parts.items()}
    await asyncio.sleep(_LAST_S)
    after, marks = await ztunnels.at_rest(), await ztunnels.ask("marks")
    assert len(after["digests"]) == 1, "ztunnels do not hold the same"
    responses = sum(after["responses"]) - sum(before["responses"])
    return {
        "changes": len(churn.made),
        "per_s": round(len(churn.made) / took_s, 1),
        "resources_per_ztunnel": (sum(after["received"]) - sum(before["received"])) / options.nodes,
        "responses_per_ztunnel": responses / options.nodes,
        "machine_busy": round(reading.busy / reading.wall, 2),
        "processors_used": {name: round(used / took_s / 1e3, 2) for name, used in cpu.items()},
        "controller_cpu_ms_per_change": round(cpu["controller"] / len(churn.made), 2),
        **_latencies(churn, marks, options.nodes),
    }


def _latencies(churn: Churn, marks: Mapping[str, list[float]], nodes: int) -> dict[str, Any]:
    complete = [one for one in churn.made if marks.get(one.mark, (0, 0, 0))[2] == nodes]
    last = sorted((marks[one.mark][1] - one.at) * 1e3 for one in complete)
    spread = sorted((marks[one.mark][1] - marks[one.mark][0]) * 1e3 for one in complete)
    after_answer = sorted(max(0.0, marks[one.mark][1] - one.answered) * 1e3 for one in complete)
    first = sorted((marks[one.mark][0] - one.at) * 1e3 for one in complete)
    return {
        "overtaken": len(churn.made) - len(complete),  # by a later change of the same object
        "api_server_answers_ms": _spread(sorted((one.answered - one.at) * 1e3 for one in churn.made)),
        "first_ztunnel_ms": _spread(first),
        "last_ztunnel_ms": _spread(last),
        "last_ztunnel_after_the_answer_ms": _spread(after_answer),
        "first_to_last_ms": _spread(spread),
    }


def _spread(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {
        "p50": round(cuts[49], 1),
        "p90": round(cuts[89], 1),
        "p99": round(cuts[98], 1),
        "max": round(values[-1], 1),
    }


async def _restart(controller: ControllerProcess, ztunnels: Ztunnels) -> dict[str, Any]:
    before = await ztunnels.at_rest()
    await controller.stop()
    ready_s = await controller.start()
    ready_at = time.monotonic()
    after = await ztunnels.at_rest(0.3)
    return {
        "ready_s": round(ready_s, 2),
        "all_synced_s": round(time.monotonic() - ready_at, 2),
        "resources_sent": sum(after["received"]) - sum(before["received"]),
    }


def main() -> None:
    """Measure and print, and write where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=100, help="and as many ztunnels")
    parser.add_argument("--per-s", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--profile", type=Path, help="write cProfile's figures of the controller here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ApiAlone() as server:
        found = asyncio.run(measure(options, server, Path(folder)))
    settings = {name: getattr(options, name) for name in ("pods", "nodes", "per_s", "seconds")}
    result = {**machine.facts(), "settings": settings, **found}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
