"""Waits, as a CNI plugin does, until the mesh has captured a pod that asks for it: its programs start only then.

What the agent says of its pods is read from the status file it keeps; nothing is asked of it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lab.nodes import Node
from lab.paths import read_json


@dataclass(frozen=True, slots=True)
class MeshRules:
    """What the mesh means for the pods of a lab."""

    hold: bool  # a pod that asks for the mesh waits until it is captured: there is somebody who captures
    istio_labels: bool = False


LOOK_EVERY_S = 0.05
# The agent will not take the pod as it is: it runs outside the mesh and the status says why.
REFUSED = "refused"
# Not captured any more; peers that have not heard of it yet are still served.
LET_GO = ("draining", "drained", REFUSED)


def row_of(node: Node, uid: str) -> dict[str, Any] | None:
    """What the node's agent says of a pod, or None when it says nothing."""
    document = read_json(node.runtime / "agent-status.json")
    if not isinstance(document, dict):
        return None
    rows: list[dict[str, Any]] = document.get("pods", [])
    return next((row for row in rows if row.get("uid") == uid), None)


def is_decided(row: Mapping[str, Any] | None) -> bool:
    """Whether the pod is captured, or never will be."""
    return row is not None and (bool(row.get("captured")) or row.get("state") == REFUSED)


def is_let_go(row: Mapping[str, Any] | None) -> bool:
    """Whether new connections of a pod that does not ask for the mesh pass by it."""
    return row is None or (not row.get("captured") and row.get("state") in LET_GO)


def describe(row: Mapping[str, Any] | None) -> str:
    """What is being waited for, in words."""
    if row is None:
        return "waits to be captured: its node's agent does not know it yet"
    return f"waits to be captured: {row.get('state')} {row.get('reason') or ''}".rstrip()


async def until_decided(node: Node, uid: str, asks: Callable[[], bool], waiting: Callable[[str], None]) -> None:
    """Return when the pod is captured, is refused by the agent, or no longer asks; `waiting` hears what for."""
    while asks():
        row = row_of(node, uid)
        if is_decided(row):
            return
        waiting(describe(row))
        await asyncio.sleep(LOOK_EVERY_S)
