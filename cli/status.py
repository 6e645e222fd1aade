"""`culvert status`: the mesh at a glance."""

import sys
from typing import Any

import click

from cli.checks.after import problems_of
from cli.lab.options import complain, fail, json_option, print_json
from cli.reach.base import AGENT, Reach, Unreachable, ask, ask_all, ask_controller, first_line
from cli.reach.options import reach_options
from cli.table import table


@click.command()
@reach_options
@json_option
def status(where: Reach, as_json: bool) -> None:
    """Show controller, nodes and pods of the mesh. Ends with 1 when something is not as it should be.

    \b
    culvert status
    culvert status --lab demo --json
    """
    found = look(where)
    if as_json:
        print_json(found)
    else:
        for line in lines(found):
            click.echo(line)
        if found["problem"]:
            complain(f"culvert: {found['problem']}")
    sys.exit(0 if found["healthy"] else 1)


def look(where: Reach) -> dict[str, Any]:
    """Everything, as a document; ends with 1 if no node is known."""
    try:
        nodes = where.nodes()
    except Unreachable as error:
        fail(str(error))
    found, failed = ask_all(lambda node: ask(where, node, AGENT, "/status"), nodes)
    controllers, taken = _controllers(where)
    rows = [_node(name, found.get(name), first_line(failed.get(name, "")), taken) for name in nodes]
    pods = [{"node": name, **pod} for name, status_ in found.items() for pod in status_["pods"]]
    problems = [row["problem"] for row in controllers] + [problem for row in rows for problem in row["problems"]]
    has_controller = bool(controllers) or where.controllers_may_be_elsewhere
    healthy = bool(nodes) and has_controller and not any(problems)
    problem = "" if nodes else where.emptiness()
    return {"healthy": healthy, "problem": problem, "controllers": controllers, "nodes": rows, "pods": pods}


def _controllers(where: Reach) -> tuple[list[dict[str, Any]], dict[str, bool] | None]:
    """The controllers, and the nodes connected to any, with whether they are up to date; None if not all answer."""
    try:
        names = where.controllers()
    except Unreachable as error:
        return [{"name": "controller", "nodes": [], "problem": first_line(error)}], None
    found, failed = ask_all(lambda name: ask_controller(where, name, "/debug/announced"), names)
    rows = [{"name": name, "nodes": sorted(said["nodes"]), "problem": ""} for name, said in found.items()]
    rows += [{"name": name, "nodes": [], "problem": first_line(why)} for name, why in failed.items()]
    taken = {node: is_taken for said in found.values() for node, is_taken in said["nodes"].items()}
    return rows, None if failed or not names else taken


def _node(name: str, status_: dict[str, Any] | None, fault: str, taken: dict[str, bool] | None) -> dict[str, Any]:
    if status_ is None:
        return {"name": name, "agent": "away", "ztunnel": "?", "guard": "?", "pods": 0, "problems": [fault]}
    problems = problems_of(status_)
    if taken is not None and status_["node"] not in taken:
        problems.append("ztunnel is connected to no controller")
    elif taken is not None and not taken[status_["node"]]:
        problems.append("has not taken what was announced last")
    captured = sum(1 for pod in status_["pods"] if pod["state"] == "captured")
    return {
        "name": name,
        "agent": "ready" if status_["ready"] else status_["waiting_for"] or "not ready",
        "ztunnel": "ready" if status_["ztunnel"]["ready"] else "not ready",
        "guard": "on" if status_["guard"]["on"] else "off",
        "pods": captured,
        "problems": problems,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The document for people."""
    if not found["controllers"] and not found["nodes"]:
        return []
    rows = [(row["name"], " ".join(row["nodes"]), row["problem"]) for row in found["controllers"]]
    text = [*table(("CONTROLLER", "NODES", "PROBLEM"), rows), ""] if rows else []
    text += table(
        ("NODE", "AGENT", "ZTUNNEL", "GUARD", "CAPTURED", "PROBLEMS"),
        [(*(row[key] for key in _COLUMNS), "; ".join(row["problems"])) for row in found["nodes"]],
    )
    if found["pods"]:
        pods = [
            (f"{pod['namespace']}/{pod['name']}", pod["node"], pod["state"], pod["reason"] or pod.get("conflict"))
            for pod in found["pods"]
        ]
        text += ["", *table(("POD", "NODE", "STATE", "REASON"), sorted(pods))]
    return text


_COLUMNS = ("name", "agent", "ztunnel", "guard", "pods")
