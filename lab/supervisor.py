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
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from lab import cleanup, components
from lab.ask import Refused
from lab.cluster import Cluster, parse_ref
from lab.components import Settings
from lab.control import ControlServer
from lab.logfiles import keep_bounded
from lab.manifests import Manifest, Ref
from lab.mesh import Mesh
from lab.network import Network
from lab.paths import LabPaths
from lab.record import Record
from lab.services import InvalidObject
from mesh.aio import Background

log = logging.getLogger(__name__)

# `lab down` is not a rolling update: programs get a moment to write what they must.
DOWN_GRACE_S = 2.0


class Supervisor:
    """One lab, from its first namespace to its last file."""

    def __init__(self, lab: str, with_mesh: bool, settings: Settings) -> None:
        self._paths = LabPaths(lab)
        self._make_directories()
        self._network = Network(self._paths, Record(self._paths))
        self._mesh = Mesh(self._paths, self._network, settings) if with_mesh else None
        # Without an agent or a ztunnel nothing is ever captured, and a pod would wait for ever.
        hold = self._mesh is not None and self._mesh.is_complete
        self._cluster = Cluster(self._paths, self._network, self._add_node, hold)
        self._background = Background()
        self._down = asyncio.Event()

    async def run(self) -> None:
        """The whole life of a lab."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._down.set)
        try:
            async with self._background:
                await self._network.make_fabric()
                self._background.start(self._cluster.keep_services(), "services")
                self._background.start(keep_bounded(self._paths.logs), "log files")
                if self._mesh is not None:
                    await self._mesh.start_controller(self._background)
                async with ControlServer(self._paths.control, self._handlers()):
                    await self._until_down()
                await self._stop()
        finally:
            left = await asyncio.to_thread(cleanup.sweep, self._paths.lab)
            for line in left:
                log.error("left behind: %s", line)

    async def _until_down(self) -> None:
        down = asyncio.get_running_loop().create_task(self._down.wait(), name="down")
        failed = asyncio.get_running_loop().create_task(self._background.failed(), name="failure")
        await asyncio.wait([down, failed], return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            log.error("a part of the lab has failed: %s", failed.exception())
        for task in (down, failed):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def _stop(self) -> None:
        await self._cluster.pods.delete_all(DOWN_GRACE_S)
        if self._mesh is not None:
            await self._mesh.stop(DOWN_GRACE_S)
        await asyncio.gather(*(server.stop(DOWN_GRACE_S) for server in self._network.name_servers.values()))

    def _make_directories(self) -> None:
        for directory in (self._paths.manifests, self._paths.logs, self._paths.pods, self._paths.scratch):
            directory.mkdir(parents=True, exist_ok=True)
        self._paths.controller_state.mkdir(mode=0o700, exist_ok=True)

    async def _add_node(self, name: str) -> None:
        node = await self._network.add_node(name)
        (node.runtime / "pods").mkdir(parents=True, exist_ok=True)
        node.runtime.chmod(0o700)
        self._background.start(self._network.name_servers[name].run(), f"dns on {name}")
        await self._cluster.publish_services()
        if self._mesh is not None:
            await self._mesh.add_node(node, self._background)

    def _handlers(self) -> dict[str, Any]:
        return {
            "ping": self._ping,
            "apply": self._apply,
            "delete": self._delete,
            "label": self._label,
            "get": self._get,
            "status": self._status,
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
        return {"object": str(ref)}

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

    async def _status(self, order: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "name": node.name,
                "key": node.key,
                "netns": str(node.netns),
                "ips": [str(node.plan.ipv4), str(node.plan.ipv6)],
                "pod_cidrs": [str(node.plan.pods4), str(node.plan.pods6)],
                "components": {
                    "dns": self._network.name_servers[node.name].status(),
                    **(self._mesh.node_status(node) if self._mesh is not None else {}),
                },
            }
            for node in self._network.nodes.values()
            if node.name in self._network.name_servers
        ]
        mesh: dict[str, Any] = self._mesh.status() if self._mesh is not None else {"enabled": False}
        mesh["waiting_for"] = await self._mesh.faults() if self._mesh is not None else []
        return {
            "lab": self._paths.lab,
            "supervisor": os.getpid(),
            "fabric": {"netns": str(self._network.fabric_path)},
            "mesh": mesh,
            "nodes": nodes,
            "pods": self._cluster.pods.summaries(),
            "services": self._cluster.services(),
        }

    async def _restart(self, order: dict[str, Any]) -> dict[str, Any]:
        target = order["target"]
        number = int(order.get("signal", signal.SIGTERM))
        if target.startswith("node/") or target == components.CONTROLLER:
            if self._mesh is None:
                raise Refused("this lab is without a mesh (it was started with --no-mesh)")
            self._mesh.signal(target.removeprefix("node/"), number)
            return {"target": target}
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
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings.from_json(arguments.settings)

    async def live() -> None:
        await Supervisor(arguments.lab, not arguments.no_mesh, settings).run()

    asyncio.run(live())
    return 0


if __name__ == "__main__":
    sys.exit(main())
