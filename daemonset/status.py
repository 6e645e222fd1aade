"""What the agent says of itself: a JSON document, a file of it, metrics and readiness.

Reads others' state and changes nothing. The text of metrics is written by hand: a dozen figures do not pay for a client
library in a process that every node runs.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemonset.agent import Agent
from daemonset.enrolment import KernelFault, Worker
from daemonset.kernel import NodeKernel
from daemonset.lifecycle import State
from daemonset.pods import Pod, Refusal
from daemonset.reports import Reports
from daemonset.ztunnels import AWAY, Ztunnels
from mesh.http import Request, Response, Routes

if TYPE_CHECKING:
    from daemonset.cluster.node import ClusterNode

# Figures of ztunnel and controller change without an event of ours.
REFRESH_S = 1.0

NOT_CAPTURED = (
    "raw and packet sockets, and what a network namespace nested in a pod forwards, are not captured and {} at the "
    "source (STRICT refuses them at their destination)"
)
_DROPPED = "guard_dropped_"  # exits of the guard, as the kernel names them


@dataclass(slots=True)
class Sources:
    """Whose state is shown; filled while the agent starts."""

    node: str
    key: str
    step: str = "starting"  # what start-up is at; empty once the agent works
    loader: str = ""  # why an older set of programs is still in use
    agent: Agent | None = None
    kernel: NodeKernel | None = None
    ztunnels: Ztunnels | None = None
    reports: Reports | None = None
    cluster: "ClusterNode | None" = None
    stands_by: bool = False  # another agent works here, we wait for its end

    @property
    def is_ready(self) -> bool:
        """Everything works, or somebody else does the work."""
        return self.stands_by or (not self.step and (self.cluster is None or self.cluster.is_installed))


class Status:
    """The document and its outlets."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something that the document shows is another now."""
        self._changed.set()

    async def keep_file(self, path: Path) -> None:
        """Keep the document in a file, replaced in one step, for as long as the task lives."""
        last = ""
        while True:
            self._changed.clear()
            text = json.dumps(self.document(), indent=1) + "\n"
            if text != last:
                _replace(path, text)
                last = text
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def document(self) -> dict[str, Any]:
        """All of it, as plain values."""
        sources = self.sources
        ztunnels, reports, agent = sources.ztunnels, sources.reports, sources.agent
        return {
            "node": sources.node,
            "key": sources.key,
            "pid": os.getpid(),
            "ready": sources.is_ready,
            "waiting_for": sources.step,
            "programs": {"problem": sources.loader},
            "ztunnel": {
                "connected": ztunnels.connected if ztunnels else 0,
                "ready": bool(ztunnels and ztunnels.is_ready),
                "problem": "" if ztunnels and ztunnels.connected else AWAY,
            },
            "controller": {
                "connected": bool(reports and reports.connected),
                "problem": reports.fault if reports else "not connected yet",
            },
            "kubernetes": sources.cluster.problems() if sources.cluster else None,
            "pods": list(self.pods()),
            "source_faults": list(agent.snapshot.faults) if agent else [],
            "guard": self._guard(),
            "not_captured": NOT_CAPTURED.format(self._what_becomes()),
        }

    def _guard(self) -> dict[str, Any]:
        """Whether pods are guarded, and what the guard dropped, by reason."""
        kernel = self.sources.kernel
        if kernel is None:
            return {"on": False, "problem": "not ready", "dropped": {}}
        try:
            dropped = _dropped(kernel.counters())
        except KernelFault as fault:
            return {"on": False, "problem": str(fault), "dropped": {}}
        return {"on": not kernel.no_guard, "problem": kernel.no_guard, "dropped": dropped}

    def _what_becomes(self) -> str:
        kernel = self.sources.kernel
        if kernel is None or kernel.no_guard:
            return "not dropped"
        return "TCP connections of theirs are dropped by the guard"

    def pods(self) -> Iterator[dict[str, Any]]:
        """Each pod that is in the mesh, asks for it or is on its way out, by name."""
        agent = self.sources.agent
        if agent is None:
            return
        rows = [_row(worker.pod, worker=worker) for worker in agent.workers]
        shown = {worker.pod.uid for worker in agent.workers}
        for uid, refusal in agent.refusals.items():
            if uid not in shown:
                rows.append(_row(agent.snapshot.pods[uid], refusal=refusal))
        yield from sorted(rows, key=lambda row: (row["namespace"], row["name"]))

    def metrics(self) -> str:
        """The figures in Prometheus' text format."""
        rows = list(self.pods())
        states = Counter(row["state"] for row in rows)
        refused = Counter(row["refused"] for row in rows if row["refused"])
        ztunnels, reports = self.sources.ztunnels, self.sources.reports
        lines = [
            *_family("pods", "Pods that ask for the mesh, by state.", "state", {s.value: states[s] for s in State}),
            *_family("pods_captured", "Pods that the kernel captures now.", "", {"": sum(r["captured"] for r in rows)}),
            *_family("pods_refused", "Pods that cannot be enrolled, by reason.", "reason", refused),
            *_family(
                "pods_guarded",
                "Captured pods of which only ztunnel opens connections.",
                "",
                {"": sum(_is_guarded(r) for r in rows)},
            ),
            *_family("ztunnels", "Ztunnels that are connected.", "", {"": ztunnels.connected if ztunnels else 0}),
            *_family(
                "controller_connected",
                "1 while reports are answered.",
                "",
                {"": int(bool(reports and reports.connected))},
            ),
        ]
        if self.sources.kernel is not None:
            counts = self.sources.kernel.counters()
            what = "Packets that the guard dropped at a pod's link, by reason."
            lines += _family("guard_dropped", what, "reason", _dropped(counts), "counter")
            lines += _family("program_exits", "How often each exit of a program was taken.", "exit", counts, "counter")
        return "\n".join(lines) + "\n"

    def routes(self) -> Routes:
        """What the status port serves."""
        return {
            ("GET", "/pods"): self._serve_pods,
            ("GET", "/status"): self._serve_status,
            ("GET", "/metrics"): self._serve_metrics,
            ("GET", "/healthz/ready"): self._serve_ready,
        }

    async def _serve_pods(self, _: Request) -> Response:
        return Response.json(list(self.pods()))

    async def _serve_status(self, _: Request) -> Response:
        return Response.json(self.document())

    async def _serve_metrics(self, _: Request) -> Response:
        try:
            body = self.metrics().encode()
        except KernelFault as fault:
            return Response.text(str(fault), 503)
        return Response(body=body, content_type="text/plain; version=0.0.4; charset=utf-8")

    async def _serve_ready(self, _: Request) -> Response:
        step = self.sources.step or ("" if self.sources.is_ready else "the CNI plugin to be in place")
        return Response.text(f"not ready: {step}", 503) if step else Response.text("ready")


def _dropped(counters: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(_DROPPED): figure for name, figure in counters.items() if name.startswith(_DROPPED)}


def _is_guarded(row: Mapping[str, Any]) -> bool:
    return bool(row["captured"]) and not row["unguarded"]


def _row(pod: Pod, *, worker: Worker | None = None, refusal: Refusal | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "uid": pod.uid,
        "namespace": pod.namespace,
        "name": pod.name,
        "addresses": [str(address) for address in pod.addresses],
        "state": State.REFUSED.value,
        "reason": str(refusal or ""),
        "refused": refusal.kind.value if refusal else "",
        "captured": False,
        "netns_cookie": None,
        "pre_enrolment": None,
        "unguarded": "",
        "conflict": "",
        "since": None,
    }
    if worker is not None:
        row |= {
            "state": worker.state.value,
            "reason": worker.reason,
            "refused": worker.refused.value if worker.refused else "",
            "captured": worker.captured,
            "netns_cookie": worker.cookie,
            "pre_enrolment": worker.pre_enrolment,
            "unguarded": worker.unguarded if worker.captured else "",
            "conflict": str(worker.conflict or "") if worker.captured else "",
            "since": round(worker.since, 3),
        }
    return row


def _family(name: str, meaning: str, label: str, values: Mapping[str, int], kind: str = "gauge") -> list[str]:
    full = f"culvert_agent_{name}" + ("_total" if kind == "counter" else "")
    lines = [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
    for value, figure in values.items():
        lines.append(f'{full}{{{label}="{value}"}} {figure}' if label else f"{full} {figure}")
    return lines


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
