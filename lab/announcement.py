"""Whether what the lab has done is known to all who must know it: what `lab up` and its like wait for at the end.

A pod that is captured and ready is not reachable yet: the controller has to read its object, the agent's report has to
reach it, and each node's ztunnel has to take what follows. The controller says how far that is; this compares what it
says with what the lab knows. Read only.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import probing

DEBUG_PORT = 15016
WAIT_S = 2.0
# The controller answers after WAIT_S at the latest; one that does not is stuck.
ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is not known everywhere yet, one line each, and what the controller refuses, by object."""

    missing: list[str]
    refused: list[dict[str, str]] = field(default_factory=list)


async def ask(fabric: Path, nodes: Iterable[str], pods: Sequence[Mapping[str, Any]]) -> Announcement:
    """Ask the controller, which waits a moment itself; `pods` as `lab status` has them."""
    try:
        async with asyncio.timeout(ANSWER_S):
            body = await probing.http_get(fabric, "127.0.0.1", DEBUG_PORT, f"/debug/announced?wait_s={WAIT_S}")
            said = json.loads(body)
    except TimeoutError:
        return Announcement([f"controller: does not say within {ANSWER_S:g} s what it has announced"])
    except (OSError, ValueError) as error:
        return Announcement([f"controller: does not say what it has announced: {error}"])
    return Announcement(compare(said, nodes, pods), said["refused"])


def compare(said: Mapping[str, Any], nodes: Iterable[str], pods: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of the pods and nodes the controller's answer does not cover."""
    if not said["source_read"]:
        return ["controller: has not read the objects as they are now"]
    taken: Mapping[str, bool] = said["nodes"]
    lines = [f"node {name}: ztunnel is not connected to the controller" for name in sorted(nodes) if name not in taken]
    lines += [f"node {name}: has not taken what was announced last" for name, is_taken in taken.items() if not is_taken]
    known = {row["uid"]: row for row in said["pods"]}
    return lines + [f"pod {pod['namespace']}/{pod['name']}: {why}" for pod in pods if (why := _why(pod, known))]


def _why(pod: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """What the controller does not know of a pod; of one that is on its way to another state nothing is expected."""
    mesh, row = pod["mesh"], known.get(pod["uid"])
    if pod["away"] or pod["phase"] != "Running" or not pod["ready"]:
        return ""
    if row is None:
        return "the controller does not know it yet"
    if not row["ready"]:
        return "the controller does not know yet that it is ready"
    if mesh["asked"] and mesh["state"] == "captured" and not row["captured"]:
        return "it is captured, but the controller does not know yet"
    if not mesh["asked"] and mesh.get("settled", False) and row["captured"]:
        return "it is no longer captured, but the controller does not know yet"
    return ""
