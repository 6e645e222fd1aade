"""The mesh components of a running lab: the controller in the fabric, agent and ztunnel on every node.

A component that this installation lacks is reported and the rest runs.
"""

import asyncio
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import announcement, components, plan, probing
from lab.announcement import Announcement
from lab.ask import Refused
from lab.components import AGENT, CONTROLLER, ZTUNNEL, Settings
from lab.network import Network
from lab.nodes import Node
from lab.paths import LabPaths
from lab.podspec import Probe
from lab.process import BASE_ENVIRONMENT, Launch
from lab.supervision import Supervised
from mesh.aio import Background

CREDENTIAL_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 1.0
READY = Probe(http_path=components.READY_PATH)


class Mesh:
    """Starts, watches and stops them. Without a controller here, another machine issues credentials."""

    def __init__(self, paths: LabPaths, network: Network, settings: Settings, has_controller: bool = True) -> None:
        self._has_controller = has_controller
        self._paths = paths
        self._network = network
        self._settings = settings
        self._missing = components.missing()
        self._environment = components.environment(BASE_ENVIRONMENT)
        self._running: dict[str, Supervised] = {}

    @property
    def is_complete(self) -> bool:
        """Whether every component can run."""
        return not self._missing

    async def start_controller(self, background: Background) -> None:
        """Start the control plane, which waits for nobody."""
        if self._has_controller and CONTROLLER not in self._missing:
            command = components.controller(self._paths, self._settings)
            self._start(CONTROLLER, command, self._network.fabric_path, self._paths.logs, background)

    async def add_node(self, node: Node, background: Background) -> None:
        """Start a node's agent and ztunnel, with the credentials they present to the controller."""
        logs = self._paths.logs / "nodes" / node.name
        commands = {AGENT: components.agent(node, self._settings), ZTUNNEL: components.ztunnel(node, self._settings)}
        if self._has_controller and CONTROLLER not in self._missing:
            await self._issue(node.name, node.runtime / "credentials")
            background.start(self._renew(node), f"credentials of {node.name}")
        for name, command in commands.items():
            if name not in self._missing:
                self._start(f"{node.name}/{name}", command, node.netns, logs, background)

    async def stop(self, grace_s: float) -> None:
        """Stop all of them."""
        await asyncio.gather(*(running.stop(grace_s) for running in self._running.values()))

    def signal(self, name: str, number: int) -> None:
        """Signal a component by `controller` or `<node>/<component>`; raises Refused."""
        if name not in self._running:
            raise Refused(f"{name!r} does not run here; these do: {', '.join(sorted(self._running)) or 'none'}")
        self._running[name].signal(number)

    def status(self) -> dict[str, Any]:
        """For `lab status`: what belongs to no node."""
        own = {CONTROLLER: self._running[CONTROLLER].status()} if CONTROLLER in self._running else {}
        return {"enabled": True, "missing": self._missing, "components": own}

    def node_status(self, node: Node) -> dict[str, Any]:
        """For `lab status`: one node's components."""
        prefix = f"{node.name}/"
        return {k.removeprefix(prefix): v.status() for k, v in self._running.items() if k.startswith(prefix)}

    async def faults(self) -> list[str]:
        """What does not work yet, one line each; asked of the components themselves."""
        found = await asyncio.gather(*(self._fault(name) for name in self._running))
        return [f"{name}: {fault}" for name, fault in zip(self._running, found, strict=True) if fault]

    async def announced(self, pods: Sequence[Mapping[str, Any]]) -> Announcement:
        """What of the lab's pods is not known to every node yet; only who runs the controller can say."""
        if CONTROLLER not in self._running or self._missing:
            return Announcement([])
        nodes = [node.name for node in self._network.local_nodes]
        return await announcement.ask(self._network.fabric_path, nodes, pods)

    async def _fault(self, name: str) -> str | None:
        node, _, component = name.rpartition("/")
        netns = self._network.nodes[node].netns if node else self._network.fabric_path
        ip = "127.0.0.1" if node else str(plan.CONTROLLER4)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                fault = await probing.http_fault(netns, ip, components.READY_PORTS[component], READY)
        except TimeoutError:
            fault = f"does not answer within {READY_TIMEOUT_S:g} s"
        trouble = self._running[name].trouble()  # why nobody answers, rather than that nobody does
        return f"{trouble}; {fault}" if fault and trouble else fault

    def _start(self, name: str, command: list[str], netns: Path, logs: Path, background: Background) -> None:
        order = Launch(argv=command, namespaces={"net": str(netns)}, env=self._environment)
        supervised = Supervised(name, order, logs / f"{name.rpartition('/')[2]}.log")
        self._running[name] = supervised
        background.run_once(supervised.run(), name)

    async def credentials_for(self, name: str) -> dict[str, str]:
        """The credentials of a node of another machine, by file name; raises Refused."""
        if CONTROLLER in self._missing:
            return {}
        folder = self._paths.controller_state / f"issued-{name}"
        try:
            await self._issue(name, folder)
            return {file: (folder / file).read_text() for file in components.CREDENTIAL_FILES}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _issue(self, name: str, folder: Path) -> None:
        command = components.credential(self._paths, self._settings, name, folder)

        def issue() -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                command,
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=CREDENTIAL_TIMEOUT_S,
            )

        done = await asyncio.to_thread(issue)
        if done.returncode:
            raise Refused(f"node {name} gets no credentials: {done.stderr.strip()[-500:]}")

    async def _renew(self, node: Node) -> None:
        while True:
            await asyncio.sleep(components.CREDENTIALS_RENEWED_EVERY_S)
            await self._issue(node.name, node.runtime / "credentials")
