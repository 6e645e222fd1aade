"""What does an idle connection cost, and a node that does nothing?

Path measured: as in hbone_pair. Each arm holds N connections that have exchanged one message; what its two proxies grew
by is divided by N. Kernel memory of the sockets is the same for all arms but for the tunnels, which are few. Then 5 s
of rest: processor time that the proxies and the agent use while nothing happens.

Numbers that would change a decision: above 6 KB per connection for both ends together, above 0.2 % of a processor at
rest.

    python -m bench.path.idle --connections 5000 --json bench/results/idle.json
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import load, machine
from bench.path import stage as stages
from bench.path.stage import Arm, Stage

REST_S = 5.0
SETTLE_S = 1.0


@contextmanager
def held(stage: Stage, arm: Arm, count: int) -> Iterator[None]:
    """So many connections, open while the block runs."""
    command = [str(stage.load), "hold", arm.ip, str(arm.port), str(count)]
    process = subprocess.Popen(
        stages.in_netns(arm.netns, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError(f"{arm.name} does not hold {count} connections")
        yield
    finally:
        process.kill()
        process.wait()


def resident_kib(pids: list[int]) -> float:
    """Of all of them."""
    return sum(machine.memory_mib(pid)["rss"] for pid in pids) * 1024


def per_connection(stage: Stage, arm: Arm, count: int) -> dict[str, float]:
    """Growth with the connections, and what stays of it when they are gone."""
    before = resident_kib(arm.proxies)
    began = time.monotonic()
    with held(stage, arm, count):
        opened_s = time.monotonic() - began
        time.sleep(SETTLE_S)
        during = resident_kib(arm.proxies)
    time.sleep(SETTLE_S)
    return {
        "kib_per_connection": round((during - before) / count, 3),
        "kib_per_connection_kept_afterwards": round((resident_kib(arm.proxies) - before) / count, 3),
        "opened_in_s": round(opened_s, 2),
    }


def at_rest(processes: dict[str, int]) -> dict[str, float]:
    """Processor time in percent of one processor."""
    before = {name: machine.cpu_ms([pid]) for name, pid in processes.items()}
    time.sleep(REST_S)
    return {name: round((machine.cpu_ms([pid]) - before[name]) / REST_S / 10, 3) for name, pid in processes.items()}


def compare(count: int, folder: Path) -> dict[str, Any]:
    """All arms."""
    with ExitStack() as stack:
        stage = stack.enter_context(stages.lab_up(stages.lab_name("idle"), (), load.build(folder)))
        arms = [
            *stack.enter_context(stages.direct_and_envoy(stage, folder)),
            stack.enter_context(stages.culvert(stage, "culvert")),
        ]
        processes = {f"{arm.name}_client": pid for arm in arms for pid in arm.client_side}
        processes |= {"agent": stage.component("client", "agent"), "controller": stage.controller}
        time.sleep(SETTLE_S)
        result: dict[str, Any] = {
            "resident_mib": {name: machine.memory_mib(pid) for name, pid in processes.items()},
            "cpu_percent_at_rest": at_rest(processes),
        }
        return result | {arm.name: per_connection(stage, arm, count) for arm in arms if arm.proxies}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    stages.end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="culvert-bench-") as folder:
        result = machine.facts() | {"connections": options.connections} | compare(options.connections, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
