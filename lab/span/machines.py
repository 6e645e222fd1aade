"""What the home knows of the machines that have joined: which they are and what they say of their pods. No I/O.

One writer: the supervisor's loop. A report counts only for the updates that its machine had taken when it sent it; that
is how the home knows that a machine does not run a pod any more, and never will.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


class InvalidReport(ValueError):
    """A report that does not say what a report says."""


class Machine:
    """The machine of one node elsewhere; `is_joined` says whether it is there now."""

    def __init__(self, node: str, changed: Callable[[str], None]) -> None:
        self.node = node
        self.instance = ""
        self.address = ""
        self.is_joined = False
        self.is_closing = False
        self.components: dict[str, Any] = {}
        self.rows: dict[str, Row] = {}
        self._changed = changed
        self._sent = 0
        self._seen = 0
        self._turn = asyncio.Event()
        self.due = asyncio.Event()

    def join(self, instance: str, address: str) -> None:
        """It is there (again); what it said before is forgotten."""
        self.instance, self.address, self.is_joined = instance, address, True
        self.rows, self.components = {}, {}
        self._turned()

    def leave(self) -> None:
        """It is not heard any more; its pods may well run on."""
        self.is_joined = False
        self._turned()

    def close(self) -> None:
        """The lab ends: nobody waits for this machine any more."""
        self.is_closing = True
        self._turned()

    def number_update(self) -> int:
        """The number of the update that is sent now."""
        self._sent += 1
        return self._sent

    def take_report(self, body: dict[str, Any]) -> None:
        """What the machine says; raises InvalidReport and then has changed nothing."""
        seen, rows, components = body.get("seen"), body.get("pods"), body.get("components")
        if not isinstance(seen, int) or not isinstance(rows, dict) or not isinstance(components, dict):
            raise InvalidReport("a report has seen, pods and components")
        for row in rows.values():
            _check_row(row)
        self._seen, self.rows, self.components = seen, rows, components
        self._turned()

    async def confirm_gone(self, uid: str) -> None:
        """Return when the machine has said, knowing all that the home knows now, that no such pod is there."""
        wanted = self._sent + 1
        self.due.set()
        while not self.is_closing and not (self.is_joined and self._seen >= wanted and uid not in self.rows):
            await self._turn.wait()

    def _turned(self) -> None:
        self._turn.set()
        self._turn = asyncio.Event()
        self._changed(self.node)


class Machines:
    """All of them, by node. `changed` hears the node about which something is known anew."""

    def __init__(self) -> None:
        self._by_node: dict[str, Machine] = {}
        self.changed: Callable[[str], None] = lambda _: None

    def of(self, node: str) -> Machine:
        """The machine of a node, which may not have joined yet."""
        if node not in self._by_node:
            self._by_node[node] = Machine(node, self._tell)
        return self._by_node[node]

    def _tell(self, node: str) -> None:
        self.changed(node)

    def __iter__(self) -> Iterator[Machine]:
        return iter(list(self._by_node.values()))


def _check_row(row: Any) -> None:
    if not isinstance(row, dict) or not isinstance(row.get("why"), str):
        raise InvalidReport("each of a report's pods has a why")
    if not _all_have([row.get("mesh")], asked=bool, state=str, reason=str):
        raise InvalidReport("each of a report's pods has a mesh: asked, state and reason")
    status = row.get("status")
    if not isinstance(status, dict) or not isinstance(status.get("phase"), str):
        raise InvalidReport("the status of a pod has a phase")
    if not _all_have(status.get("conditions"), type=str, status=str):
        raise InvalidReport("the status of a pod has conditions, each with type and status")
    if not _all_have(status.get("containerStatuses"), restartCount=int):
        raise InvalidReport("the status of a pod has containerStatuses, each with restartCount")


def _all_have(items: Any, **fields: type) -> bool:
    return isinstance(items, list) and all(
        isinstance(item, dict) and all(isinstance(item.get(name), kind) for name, kind in fields.items())
        for item in items
    )
