"""The long-lived process of a lab: makes it, keeps it running, takes orders, takes it down.

Owns every process and namespace of the lab. Ends on SIGTERM, SIGINT or the order `down`, and then leaves nothing; when
it is killed, all its children die with it and `culvert lab down` removes the rest from the record.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import cleanup, components
from lab.announcement import Announcement
from lab.ask import Refused
from lab.capture import MeshRules
from lab.cluster import Cluster, parse_ref
from lab.components import Settings
from lab.control import ControlServer
from lab.logfiles import keep_bounded
from lab.manifests import Manifest, Ref
from lab.mesh import Mesh
from lab.network import Network
from lab.nodes import Node
from lab.paths import LabPaths
from lab.plan import MTU, SPAN_MTU
from lab.record import Record
from lab.services import InvalidObject
from lab.span.home import Facts, Home
from lab.span.joined import Entered, Joined, JoinRefused, LabEnded, enter, keep_credentials
from lab.span.link import LinkLost
from lab.span.machines import Machines
from lab.span.options import Span, endpoint
from lab.span.overlay import Overlay
from lab.span.secret import InvalidToken, keep_token
from mesh.aio import Background

log = logging.getLogger(__name__)

# What a person can act on: said in one line, without a traceback.
EXPECTED = (InvalidToken, JoinRefused, LabEnded, LinkLost, OSError)

# `lab down` is not a rolling update: programs get a moment to write what they must.
DOWN_GRACE_S = 2.0
# Rules and names of a node follow within milliseconds; a name server that has just started, in half a second.
SERVICES_SHOWN_S = 3.0


class Supervisor:
    """One lab, from its first namespace to its last file."""

    def __init__(self, lab: str, with_mesh: bool, settings: Settings, span: Span, entered: Entered | None) -> None:
        self._paths = LabPaths(lab)
        self._make_directories()
        self._span = span
        mtu = SPAN_MTU if span.listen or entered else MTU
        self._network = Network(self._paths, Record(self._paths), mtu)
        self._mesh = Mesh(self._paths, self._network, settings, has_controller=entered is None) if with_mesh else None
        # Without an agent or a ztunnel nothing is ever captured, and a pod would wait for ever.
        hold = self._mesh is not None and self._mesh.is_complete
        rules = MeshRules(hold, settings.istio_labels)
        machines = Machines()
        self._cluster = Cluster(self._paths, self._network, self._add_node, rules, machines)
        self._background = Background()
        self._down = asyncio.Event()
        self._why_ended = f"lab {lab!r} is being taken down"
        self._joined = Joined(entered, self._cluster, self._network) if entered else None
        self._home: Home | None = None
        if span.listen:
            facts = Facts(lab, with_mesh, settings.to_json())
            self._home = Home(facts, keep_token(self._paths, span), self._cluster, self._network, machines)

    async def run(self) -> None:
        """The whole life of a lab."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._down.set)
        try:
            async with self._background:
                await self._network.make_fabric(has_controller=self._joined is None)
                self._background.start(self._cluster.keep_services(), "services")
                self._background.start(keep_bounded(self._paths.logs), "log files")
                if self._mesh is not None:
                    await self._mesh.start_controller(self._background)
                if self._home is not None:
                    await self._open(self._home)
                if self._joined is not None:
                    await self._enter(self._joined)
                async with ControlServer(self._paths.control, self._handlers(), lambda: self._why_ended):
                    await self._until_down()
                await self._stop()
        finally:
            # What a thread is still making would outlive the sweep.
            await asyncio.get_running_loop().shutdown_default_executor()
            for line in cleanup.sweep(self._paths.lab):
                log.error("left behind: %s", line)

    async def _open(self, home: Home) -> None:
        address, port = endpoint(self._span.listen)
        home.listen(address, port)
        overlay = Overlay(self._network.fabric_path, home.network_id, address)
        await overlay.make()
        if self._mesh is not None:
            home.issue = self._mesh.credentials_for
        self._background.start(home.serve(overlay), "joined machines")

    async def _enter(self, joined: Joined) -> None:
        await joined.overlay.make()

        async def add_own_node(files: dict[str, str]) -> None:
            await self._make_node(joined.node, joined.index, lambda folder: keep_credentials(folder, files))

        try:
            await joined.begin(add_own_node)
        except (LinkLost, LabEnded):
            await self._stop()
            raise
        self._background.run_once(self._stay(joined), "home")

    async def _stay(self, joined: Joined) -> None:
        node = self._network.nodes[joined.node]
        try:
            await joined.live(lambda: self._component_status(node), node.runtime / "credentials")
        except LabEnded as error:
            log.warning("%s: this machine's part of it ends too", error)
            self._down.set()

    async def _until_down(self) -> None:
        down = asyncio.get_running_loop().create_task(self._down.wait(), name="down")
        failed = asyncio.get_running_loop().create_task(self._background.failed(), name="failure")
        await asyncio.wait([down, failed], return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            self._why_ended = f"a part of the lab has failed, and it is taken down: {failed.exception()}"
            log.error(self._why_ended, exc_info=failed.exception())
        for task in (down, failed):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _stop(self) -> None:
        if self._home is not None:
            await self._home.say_goodbye()
        await self._cluster.pods.delete_all(DOWN_GRACE_S)
        if self._mesh is not None:
            await self._mesh.stop(DOWN_GRACE_S)
        await asyncio.gather(*(server.stop(DOWN_GRACE_S) for server in self._network.name_servers.values()))

    def _make_directories(self) -> None:
        for directory in (self._paths.manifests, self._paths.logs, self._paths.pods, self._paths.scratch):
            directory.mkdir(parents=True, exist_ok=True)
        self._paths.controller_state.mkdir(mode=0o700, exist_ok=True)
        self._paths.pid.write_text(f"{os.getpid()}\n")

    async def _add_node(self, name: str) -> None:
        if self._home is not None and name not in self._span.local:
            await self._network.add_remote_node(name)
            self._home.expect(name)
        else:
            await self._make_node(name)

    async def _make_node(
        self, name: str, index: int | None = None, prepare: Callable[[Path], None] = lambda _: None
    ) -> None:
        node = await self._network.add_node(name, index)
        (node.runtime / "pods").mkdir(parents=True, exist_ok=True)
        node.runtime.chmod(0o700)
        prepare(node.runtime / "credentials")
        self._background.start(self._network.name_servers[name].run(), f"dns on {name}")
        await self._cluster.publish_services()
        if self._mesh is not None:
            await self._mesh.add_node(node, self._background)

    def _handlers(self) -> dict[str, Any]:
        here = self._joined is None
        return {
            "ping": self._ping,
            "apply": self._apply if here else self._refer,
            "delete": self._delete if here else self._refer,
            "label": self._label if here else self._refer,
            "get": self._get,
            "status": self._status,
            "announced": self._announced,
            "restart": self._restart,
            "down": self._take_down,
        }

    async def _ping(self, order: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid()}

    async def _apply(self, order: dict[str, Any]) -> dict[str, Any]:
        return {"outcomes": [asdict(outcome) for outcome in await self._cluster.apply(order["objects"])]}

    async def _delete(self, order: dict[str, Any]) -> dict[str, Any]:
        ref = parse_ref(order["kind"], order["path"])
        try:
            await self._cluster.delete(ref, order.get("grace_s"))
        except KeyError:
            raise Refused(f"there is no {ref} in lab {self._paths.lab}") from None
        except InvalidObject as error:
            raise Refused(str(error)) from error
        return {"object": str(ref), "gone": not self._cluster.pods.is_ending(ref)}

    async def _label(self, order: dict[str, Any]) -> dict[str, Any]:
        ref = parse_ref(order["kind"], order["path"])
        try:
            outcome = await self._cluster.label(ref, order["changes"], order.get("field", "labels"))
        except KeyError:
            raise Refused(f"there is no {ref} in lab {self._paths.lab}") from None
        return asdict(outcome)

    async def _get(self, order: dict[str, Any]) -> dict[str, Any]:
        if "path" not in order:
            return {"objects": self._cluster.objects()}
        ref = parse_ref(order["kind"], order["path"])
        found: Manifest | None = self._cluster.object(ref)
        if found is None:
            raise Refused(f"there is no {ref} in lab {self._paths.lab}")
        return {"object": found}

    async def _refer(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._joined is not None, "only then"
        home = self._joined.home_address
        raise Refused(f"this machine has joined the lab of {home}, which keeps its objects: say this there")

    def _component_status(self, node: Node) -> dict[str, Any]:
        """The components of one node, wherever it is."""
        if not node.is_local:
            return self._home.components_of(node.name) if self._home is not None else {}
        servers = self._network.name_servers
        own = {"dns": servers[node.name].status()} if node.name in servers else {}
        return {**own, **(self._mesh.node_status(node) if self._mesh is not None else {})}

    async def _status(self, order: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "name": node.name,
                "key": node.key,
                "netns": str(node.netns) if node.is_local else "",
                "ips": [str(node.plan.ipv4), str(node.plan.ipv6)],
                "pod_cidrs": [str(node.plan.pods4), str(node.plan.pods6)],
                "components": self._component_status(node),
            }
            for node in self._network.nodes.values()
            if node.name in self._network.name_servers or not node.is_local
        ]
        mesh: dict[str, Any] = self._mesh.status() if self._mesh is not None else {"enabled": False}
        mesh["waiting_for"] = await self._mesh.faults() if self._mesh is not None else []
        return {
            "lab": self._paths.lab,
            "supervisor": os.getpid(),
            "fabric": {"netns": str(self._network.fabric_path)},
            "mesh": mesh,
            "span": self._span_status(),
            "nodes": nodes,
            "pods": self._cluster.pods.summaries(),
            "services": self._cluster.services(),
        }

    async def _announced(self, order: dict[str, Any]) -> dict[str, Any]:
        """What is not known everywhere yet; waits a moment for it."""
        try:
            async with asyncio.timeout(SERVICES_SHOWN_S):
                await self._cluster.until_services_are_shown()
        except TimeoutError:
            return {"missing": ["services: some node's name server does not answer with them yet"], "refused": []}
        pods = self._cluster.pods.summaries()
        return asdict(await self._mesh.announced(pods) if self._mesh is not None else Announcement([]))

    def _span_status(self) -> dict[str, Any]:
        if self._home is not None:
            return {"machines": self._home.status()}
        return {"joined": self._joined.status()} if self._joined is not None else {}

    async def _restart(self, order: dict[str, Any]) -> dict[str, Any]:
        target = order["target"]
        number = int(order.get("signal", signal.SIGTERM))
        if target.startswith("node/") or target == components.CONTROLLER:
            if self._mesh is None:
                raise Refused("this lab is without a mesh (it was started with --no-mesh)")
            self._mesh.signal(target.removeprefix("node/"), number)
            return {"target": target}
        if self._joined is not None:
            return await self._refer(order)
        namespace, _, name = target.rpartition("/")
        ref = Ref("Pod", namespace or "default", name)
        if not self._cluster.pods.has(ref):
            raise Refused(f"there is no {ref} in lab {self._paths.lab}")
        self._cluster.pods.reapply(ref)
        return {"target": str(ref)}

    async def _take_down(self, order: dict[str, Any]) -> dict[str, Any]:
        self._down.set()
        return {}


def main() -> int:
    """`python -m lab.supervisor --lab NAME`; started by `culvert lab up`."""
    parser = argparse.ArgumentParser(prog="lab.supervisor")
    parser.add_argument("--lab", required=True)
    parser.add_argument("--no-mesh", action="store_true")
    parser.add_argument("--settings", default="{}", help="Settings as JSON")
    parser.add_argument("--span", default="{}", help="Span as JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings, span = Settings.from_json(arguments.settings), Span.from_json(arguments.span)

    async def live() -> None:
        with_mesh, entered = not arguments.no_mesh, None
        chosen = settings
        if span.join:
            entered = await enter(LabPaths(arguments.lab), span)
            with_mesh, chosen = entered.welcome.with_mesh, Settings.from_json(entered.welcome.settings)
        await Supervisor(arguments.lab, with_mesh, chosen, span, entered).run()

    try:
        asyncio.run(live())
    except EXPECTED as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
