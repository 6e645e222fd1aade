"""A pod that another machine runs, as the home sees it: what PodRun is for a pod of this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.pods import PodIdentity, host_status
from lab.podspec import PodSpec
from lab.span.machines import Machine


class RemotePod:
    """Decided here, run there. It is over when its machine says so."""

    netns = ""
    netns_path = Path()
    sandbox_pid = None

    def __init__(self, identity: PodIdentity, spec: PodSpec, machine: Machine, changed: Callable[[], None]) -> None:
        self.identity = identity
        self.spec = spec
        self.grace_s = spec.grace_s
        self._machine = machine
        self._changed = changed
        self._message = ""

    @property
    def is_away(self) -> bool:
        """Whether nobody can be asked about it now."""
        return not self._machine.is_joined

    async def run(self) -> None:
        """Its machine runs it."""

    async def tear_down(self) -> None:
        """Wait until its machine has ended it."""
        await self._machine.confirm_gone(self.identity.uid)

    def fail(self, message: str) -> None:
        """Show why this pod is not running."""
        self._message = message
        self._changed()

    def status(self) -> dict[str, Any]:
        """Pod.status as its machine reports it; not ready while nothing is heard of that machine."""
        row = self._machine.rows.get(self.identity.uid)
        given = row["status"] if row is not None else _UNKNOWN
        status = {**given, **host_status(self.identity), "message": self._message or given.get("message", "")}
        if self.is_away:
            status["conditions"] = [{**c, "status": "False"} for c in given["conditions"]]
        return status

    def why_not_ready(self) -> str:
        """One sentence for people."""
        if self._message:
            return self._message
        if self.is_away:
            return f"the machine of {self.identity.node.name} is away"
        row = self._machine.rows.get(self.identity.uid)
        return "is being handed over" if row is None else str(row["why"])

    def mesh_state(self) -> dict[str, Any]:
        """What its node's agent says of it."""
        row = self._machine.rows.get(self.identity.uid)
        return row["mesh"] if row is not None else {"asked": False, "state": "", "reason": ""}


_UNKNOWN: dict[str, Any] = {
    "phase": "Pending",
    "message": "",
    "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
    "initContainerStatuses": [],
    "containerStatuses": [],
}
