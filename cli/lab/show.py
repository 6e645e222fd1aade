"""`culvert lab list`, `status`, `logs`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from cli.lab.options import fail, json_option, lab_option, print_json
from lab import client, paths
from lab.capture import REFUSED
from lab.choice import LabError, choose
from lab.paths import LabPaths


@click.command("list")
@json_option
def list_labs(as_json: bool) -> None:
    """List the labs of this machine.

    \b
    culvert lab list
    """
    found = [{"lab": name, "alive": client.is_alive(name)} for name in paths.labs()]
    if as_json:
        print_json(found)
        return
    for entry in found:
        dead = f"dead: `culvert lab down --lab {entry['lab']}` removes it"
        click.echo(f"{entry['lab']}\t{'up' if entry['alive'] else dead}")


@click.command()
@lab_option
@json_option
def status(lab_name: str | None, as_json: bool) -> None:
    """Show nodes, pods, services and components. Ends with 1 when a pod is not ready or a component does not run.

    \b
    culvert lab status
    culvert lab status --json
    """
    try:
        found = client.order(choose(lab_name), "status")
    except LabError as error:
        fail(str(error))
    bad = faults(found)
    if as_json:
        print_json({**found, "ready": not bad, "faults": bad})
    else:
        for line in _lines(found):
            click.echo(line)
    sys.exit(1 if bad else 0)


@click.command()
@click.argument("target", metavar="NS/POD|node/NODE/COMPONENT|controller|supervisor")
@click.option("-c", "--container", metavar="NAME", help="Which container; default: all of the pod.")
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@click.option("--tail", type=int, metavar="LINES", help="Only the last lines.")
@lab_option
def logs(target: str, container: str | None, follow: bool, tail: int | None, lab_name: str | None) -> None:
    """Print what a container or component wrote, standard output and error together.

    \b
    culvert lab logs shop/web
    culvert lab logs node/node-1/ztunnel -f
    """
    try:
        files = log_files(LabPaths(choose(lab_name)), target, container)
    except LabError as error:
        fail(str(error))
    command = [
        "tail",
        "-q",
        "-n",
        str(tail) if tail is not None else "+1",
        *(["-F"] if follow else []),
        *map(str, files),
    ]
    try:
        sys.exit(subprocess.run(command, check=False).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


def log_files(own: LabPaths, target: str, container: str | None) -> list[Path]:
    """The files in which a target's output stands; raises LabError."""
    if target == "supervisor":
        return [own.root / "supervisor.log"]
    if target == "controller":
        found = [own.logs / "controller.log"]
    elif target.startswith("node/"):
        _, node, component = (*target.split("/"), "", "")[:3]
        found = (
            [own.logs / "nodes" / node / f"{component}.log"]
            if component
            else [*(own.logs / "nodes" / node).glob("*.log")]
        )
    else:
        namespace, _, name = target.rpartition("/")
        folder = own.logs / f"{namespace or 'default'}_{name}"
        found = (
            [folder / f"{container}.log"]
            if container
            else sorted(p for p in folder.glob("*.log") if p.stem != "sandbox")
        )
    existing = [path for path in found if path.exists()]
    if not existing:
        raise LabError(f"nothing is logged for {target!r} in lab {own.lab!r} (`culvert lab status` shows what runs)")
    return existing


def faults(found: dict[str, Any]) -> list[str]:
    """What is not as it should be, one line each."""
    pods = [
        f"pod {p['namespace']}/{p['name']}: {client.why(p)}"
        for p in found["pods"]
        if p["phase"] == "Failed" or not client.is_settled(p)
    ]
    components = [
        f"{where}{name}: {state['last_end'] or state['state']}"
        for where, items in _components(found)
        for name, state in items.items()
        if state["state"] != "running"
    ]
    missing = [f"{name} is not installed" for name in found["mesh"].get("missing", ())]
    return [*pods, *components, *found["mesh"]["waiting_for"], *missing]


def _components(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    nodes = [(f"node/{node['name']}/", node["components"]) for node in found["nodes"]]
    return [("", found["mesh"].get("components", {})), *nodes]


def _lines(found: dict[str, Any]) -> list[str]:
    mesh = "with mesh" if found["mesh"]["enabled"] else "without mesh"
    lines = [f"lab {found['lab']} ({mesh}), supervisor {found['supervisor']}", *_span(found.get("span", {}))]
    lines += ["", "NODE  ADDRESSES  NETNS"]
    lines += [f"{n['name']}  {' '.join(n['ips'])}  {Path(n['netns']).name or 'elsewhere'}" for n in found["nodes"]]
    lines += ["", "COMPONENT  STATE  PID  RESTARTS"]
    for where, items in _components(found):
        lines += [f"{where}{name}  {s['state']}  {s['pid'] or '-'}  {s['restarts']}" for name, s in items.items()]
    lines += ["", "POD  NODE  STATE  MESH  ADDRESSES  RESTARTS"]
    for p in found["pods"]:
        state = "Ready" if p["ready"] else f"{p['phase']} ({p['why']})"
        mesh = p["mesh"]["state"] or "-"
        lines.append(
            f"{p['namespace']}/{p['name']}  {p['node']}  {state}  {mesh}  {' '.join(p['ips'])}  {p['restarts']}"
        )
    lines += _told([p for p in found["pods"] if p["mesh"]["state"] == REFUSED], "reason", "not in the mesh: ")
    lines += _told(found["pods"], "unguarded", "without guard: ")
    lines += _told(found["pods"], "conflict", "port of the mesh: ")
    lines += ["", "SERVICE  ADDRESSES  PORTS"]
    for s in found["services"]:
        ports = ", ".join(f"{p['port']} -> {len(p['endpoints'])} endpoints" for p in s["ports"])
        lines.append(f"{s['namespace']}/{s['name']}  {' '.join(s['ips']) or 'headless'}  {ports}")
    return _aligned(lines)


def _told(pods: list[dict[str, Any]], key: str, title: str) -> list[str]:
    """What agents say of pods besides their state, and of which."""
    reasons: dict[str, list[str]] = {}
    for p in pods:
        if reason := p["mesh"].get(key):
            reasons.setdefault(reason, []).append(f"{p['namespace']}/{p['name']}")
    return [line for reason, names in sorted(reasons.items()) for line in ("", f"{title}{', '.join(names)}: {reason}")]


def _span(span: dict[str, Any]) -> list[str]:
    """Where the rest of the lab is, when it spans several machines."""
    if "joined" in span:
        joined = span["joined"]
        return [f"part of lab {joined['lab']} of {joined['home']}{'' if joined['connected'] else ', which is away'}"]
    return [
        f"{node} is for another machine: {m['address'] if m['joined'] else 'which is away'}"
        for node, m in span.get("machines", {}).items()
    ]


def _aligned(lines: list[str]) -> list[str]:
    """Columns (parted by two spaces) of each block as wide as their widest cell."""
    result: list[str] = []
    block: list[list[str]] = []
    for line in [*lines, ""]:
        if line:
            block.append(line.split("  "))
            continue
        widths = [max(len(row[i]) for row in block if len(row) > i) for i in range(max(map(len, block), default=0))]
        result += ["  ".join(c.ljust(widths[i]) for i, c in enumerate(row)).rstrip() for row in block] + [""]
        block = []
    return result[:-1]
