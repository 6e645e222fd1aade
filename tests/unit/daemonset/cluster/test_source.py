"""The source against a scripted API server, and the gate and annotations on top of it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from daemonset.cluster import source as source_module
from daemonset.cluster.namespaces import Sandboxes
from daemonset.cluster.source import ClusterSource
from daemonset.pods import Snapshot
from mesh.kube.errors import ApiFault, NotFound
from mesh.kube.follow import Pace
from tests.unit.controller.fake_api import FakeApi, refusal
from tests.unit.daemonset.cluster.following import following
from tests.unit.daemonset.cluster.objects import UID, namespace, pod

PACE = Pace(shortest_backoff_s=0.01, longest_backoff_s=0.05, shortest_watch_s=0.0)


class Stage:
    def __init__(self, fake: FakeApi, source: ClusterSource, sandboxes: Sandboxes) -> None:
        self.fake, self.source, self.sandboxes = fake, source, sandboxes
        self.snapshots: list[Snapshot] = []

    async def until(self, condition: Any) -> Snapshot:
        for _ in range(300):
            if self.snapshots and condition(self.snapshots[-1]):
                return self.snapshots[-1]
            await asyncio.sleep(0.01)
        raise AssertionError(f"not seen; last {self.snapshots[-1:]}")

    def give(self, uid: str = UID, container: str = "c1") -> str:
        fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            return self.sandboxes.give(uid, container, fd, ()).path
        finally:
            os.close(fd)


@contextlib.asynccontextmanager
async def stage(tmp_path: Path, *documents: dict[str, Any]) -> AsyncIterator[Stage]:
    fake = FakeApi()
    fake.put(*documents)
    sandboxes = Sandboxes()
    try:
        async with fake.serving(tmp_path) as api:
            made = Stage(fake, ClusterSource(api, "n1", sandboxes, PACE), sandboxes)
            async with following(made.source, made.snapshots):
                yield made
    finally:
        sandboxes.close()


def test_pods_of_this_node_and_labels_of_all_namespaces_are_followed(tmp_path: Path) -> None:
    async def run() -> None:
        async with stage(tmp_path, namespace(mesh="enabled"), pod()) as made:
            path = made.give()
            snapshot = await made.until(lambda one: one.pods and one.pods[UID].netns)
            found = snapshot.pods[UID]
            assert (found.full_name, found.service_account, found.netns) == ("shop/web", "web", path)
            assert [str(address) for address in found.addresses] == ["10.0.0.5"]
            assert snapshot.namespaces["shop"] == {"culvert.io/mesh": "enabled"}
            lists = [one for one in made.fake.requests if one.path == "/api/v1/pods"]
            assert all(
                one.query["fieldSelector"] == "spec.nodeName=n1" for one in lists if one.query.get("limit") != "1"
            )
            made.fake.put(namespace(mesh="disabled"))
            await made.until(lambda one: one.namespaces["shop"] == {"culvert.io/mesh": "disabled"})
            made.fake.delete(pod())
            await made.until(lambda one: not one.pods)
            assert UID not in made.sandboxes

    asyncio.run(run())


@pytest.mark.parametrize(
    ("document", "is_shown"),
    [
        (pod(phase="Pending", ip=""), False),
        (pod(phase="Succeeded"), False),
        (pod(phase="Failed"), False),
        (pod(hostNetwork=True), True),
        (pod(), True),
    ],
)
def test_what_is_no_running_pod_is_not_shown(tmp_path: Path, document: dict[str, Any], is_shown: bool) -> None:
    async def run() -> None:
        async with stage(tmp_path, namespace(), document) as made:
            snapshot = await made.until(lambda one: True)
            assert (UID in snapshot.pods) is is_shown
            assert not is_shown or snapshot.pods[UID].netns == ""

    asyncio.run(run())


def test_a_pod_that_starts_is_shown_with_what_the_plugin_told(tmp_path: Path) -> None:
    async def run() -> None:
        async with stage(tmp_path, namespace(), pod(phase="Pending", ip="")) as made:
            await made.until(lambda one: True)
            fd = os.open("/proc/self/ns/net", os.O_RDONLY)
            sandbox = made.sandboxes.give(UID, "c1", fd, (ip_address("10.9.9.9"),))
            os.close(fd)
            made.source.touch()
            snapshot = await made.until(lambda one: one.pods)
            assert [str(address) for address in snapshot.pods[UID].addresses] == ["10.9.9.9"]
            made.sandboxes.remove(UID, "c1")
            made.source.touch()
            await made.until(lambda one: not one.pods)
            assert sandbox.path

    asyncio.run(run())


def test_a_pod_that_the_watch_has_not_shown_is_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with stage(tmp_path, namespace()) as made:
            await made.until(lambda one: True)
            made.fake.script = lambda request: None
            made.fake.objects["/api/v1/pods"] = {"shop/late": pod("late", phase="Pending", ip="")}
            record = await made.source.look_up("shop", "late", UID)
            assert (record.uid, record.service_account) == (UID, "web")
            with pytest.raises(NotFound, match="another uid"):
                await made.source.look_up("shop", "late", "11111111-1111-2222-3333-444455556666")
            with pytest.raises(NotFound):
                await made.source.look_up("shop", "nobody", "")

    asyncio.run(run())


def test_a_pod_of_another_node_is_not_ours_to_enrol(tmp_path: Path) -> None:
    async def run() -> None:
        async with stage(tmp_path, namespace()) as made:
            await made.until(lambda one: True)
            made.fake.objects["/api/v1/pods"] = {"shop/far": pod("far", nodeName="n2")}
            with pytest.raises(NotFound):
                await made.source.look_up("shop", "far", UID)

    asyncio.run(run())


def test_while_the_api_server_is_away_nobody_leaves_and_what_is_known_is_found(tmp_path: Path) -> None:
    async def run() -> None:
        async with stage(tmp_path, namespace(mesh="enabled"), pod()) as made:
            made.give()
            await made.until(lambda one: one.pods)
            made.fake.script = lambda request: refusal(503)
            made.fake.drop_connections()
            await asyncio.sleep(0.2)
            assert made.source.fault
            assert made.snapshots[-1].pods
            assert (await made.source.look_up("shop", "web", UID)).uid == UID
            with pytest.raises(ApiFault):
                await made.source.look_up("shop", "unknown", "")

    asyncio.run(run())


def test_a_namespace_that_the_watch_has_not_shown_is_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with stage(tmp_path, pod()) as made:
            await made.until(lambda one: True)
            made.fake.objects["/api/v1/namespaces"] = {"shop": namespace(mesh="enabled")}
            await made.source.look_up("shop", "web", UID)
            assert made.source.namespace_labels("shop") == {"culvert.io/mesh": "enabled"}

    asyncio.run(run())


def test_processes_are_looked_at_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "SEARCH_S", 0.3)

    async def run() -> None:
        async with stage(tmp_path, namespace(), pod()) as made:
            searches: list[list[str]] = []
            monkeypatch.setattr(
                made.sandboxes, "search", lambda pods: searches.append([one.uid for one in pods]), raising=True
            )
            await made.until(lambda one: one.pods)
            for number in range(10):
                made.fake.put(namespace(mesh="enabled" if number % 2 else "disabled"))
                await asyncio.sleep(0.03)
            assert len(searches) <= 3
            await asyncio.sleep(0.5)
            assert len(searches) >= 2, "what was put off is made up for"
            assert searches[-1] == [UID]

    asyncio.run(run())
