"""The node agent's end of a real API server: what it follows, what it asks for, what it writes on pods."""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from daemonset.cluster.annotations import Annotator
from daemonset.cluster.namespaces import Sandboxes
from daemonset.cluster.source import ClusterSource
from daemonset.lifecycle import Goal, State
from daemonset.pods import Snapshot
from mesh.kube.api import Api
from mesh.kube.errors import Invalid, NotFound
from mesh.kube.resources import NAMESPACES, PODS
from tests.cluster.alone import ApiAlone
from tests.cluster.mesh_objects import Objects
from tests.unit.daemonset.cluster.following import following

pytestmark = [pytest.mark.root, pytest.mark.slow]

CAPTURE = "culvert.io/capture"
STRANGER = "00000000-0000-0000-0000-000000000000"


class Stage:
    """A node whose pods are followed."""

    def __init__(self, api: Api, objects: Objects, node: str, source: ClusterSource, sandboxes: Sandboxes) -> None:
        self.api, self.objects, self.node, self.source, self.sandboxes = api, objects, node, source, sandboxes
        self.snapshots: list[Snapshot] = []

    async def until(self, condition: Callable[[Snapshot], Any]) -> Snapshot:
        async with asyncio.timeout(20):
            while not self.snapshots or not condition(self.snapshots[-1]):
                await asyncio.sleep(0.02)
        return self.snapshots[-1]

    def give(self, uid: str) -> None:
        fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            self.sandboxes.give(uid, "c1", fd, ())
        finally:
            os.close(fd)
        self.source.touch()

    async def annotation(self, name: str) -> str | None:
        document = await self.api.get(PODS, name, self.objects.namespace)
        found: str | None = document["metadata"].get("annotations", {}).get(CAPTURE)
        return found


@contextlib.asynccontextmanager
async def stage(server: ApiAlone) -> AsyncIterator[Stage]:
    api = server.api()
    objects = await Objects.make(api, "agent")
    await objects.account("web")
    node = await objects.node()
    sandboxes = Sandboxes()
    made = Stage(api, objects, node, ClusterSource(api, node, sandboxes), sandboxes)
    try:
        async with following(made.source, made.snapshots):
            yield made
    finally:
        sandboxes.close()


def test_this_nodes_pods_and_every_namespaces_labels(api_server: ApiAlone) -> None:
    async def run() -> None:
        async with stage(api_server) as made:
            await made.until(lambda one: True)
            uid = await made.objects.pod("web", "web", made.node)
            await made.objects.pod("far", "web", await made.objects.node())
            record = await made.source.look_up(made.objects.namespace, "web", uid)
            assert (record.uid, record.service_account, record.node) == (uid, "web", made.node)
            with pytest.raises(NotFound):
                await made.source.look_up(made.objects.namespace, "far", "")
            await made.api.merge_patch(
                NAMESPACES, made.objects.namespace, {"metadata": {"labels": {"culvert.io/mesh": "enabled"}}}
            )
            await made.until(
                lambda one: one.namespaces.get(made.objects.namespace, {}).get("culvert.io/mesh") == "enabled"
            )
            await made.api.merge_patch(
                PODS,
                "web",
                {"status": {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}},
                made.objects.namespace,
                "status",
            )
            made.give(uid)
            snapshot = await made.until(lambda one: one.pods and next(iter(one.pods.values())).netns)
            assert [str(address) for address in snapshot.pods[uid].addresses] == ["10.1.2.3"]
            assert list(snapshot.pods) == [uid]
            await made.api.delete(PODS, "web", made.objects.namespace)
            await made.until(lambda one: not one.pods)

    asyncio.run(run())


def test_annotations_are_written_on_the_very_pod(api_server: ApiAlone) -> None:
    async def run() -> None:
        async with stage(api_server) as made:
            uid = await made.objects.pod("web", "web", made.node)
            async with asyncio.timeout(20):
                while uid not in made.source.records:
                    await asyncio.sleep(0.02)
            worker = SimpleNamespace(goal=Goal.ENROL, state=State.CAPTURED, captured=True)
            agent: Any = SimpleNamespace(worker={uid: worker}.get, refusals={})
            annotator = Annotator(made.api, made.source, agent)
            task = asyncio.get_running_loop().create_task(annotator.run())
            async with asyncio.timeout(20):
                while await made.annotation("web") != "enabled":
                    await asyncio.sleep(0.05)
                worker.goal = Goal.UNENROL
                annotator.changed()
                while await made.annotation("web") != "bypassing":
                    await asyncio.sleep(0.05)
            made.source.records[uid] = dataclasses.replace(made.source.records[uid], uid=STRANGER)  # type: ignore[index]
            worker.goal = Goal.ENROL
            annotator.changed()
            await asyncio.sleep(0.3)
            assert await made.annotation("web") == "bypassing", "a successor of that name is not written on"
            assert annotator.fault == ""
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            other = {"metadata": {"uid": STRANGER, "annotations": {CAPTURE: "enabled"}}}
            with pytest.raises(Invalid, match="immutable"):
                await made.api.merge_patch(PODS, "web", other, made.objects.namespace)

    asyncio.run(run())
