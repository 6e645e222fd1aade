"""A whole controller behind a doorkeeper that spoils its way to a real API server; a node that must not notice.

node <── controller ──> doorkeeper ──> kube-apiserver <── test
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.app import Controller
from controller.config import Config, ElectionConfig, ServeConfig, SourceConfig
from mesh.kube.api import Api
from mesh.kube.resources import AUTHORIZATION_POLICIES, PODS
from tests.cluster.alone import ApiAlone
from tests.cluster.doorkeeper import Deed, Doorkeeper, pass_all
from tests.cluster.mesh_objects import fresh
from tests.cluster.objects import define, namespace, pod, put, until
from tests.unit.controller.nodes import FakeNode, node, policy, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DENY: dict[str, Any] = {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}


class Stage:
    """What a test has: the way around the doorkeeper, and both ends of the way through."""

    def __init__(self, api: Api, door: Doorkeeper, controller: Controller, far: FakeNode, ns: str) -> None:
        self.api, self.door, self.controller, self.node, self.ns = api, door, controller, far, ns

    async def put_pod(self, name: str, last: int) -> None:
        await put(self.api, pod(name, f"10.20.0.{last}", self.ns))

    def has(self, name: str) -> bool:
        return f"Kubernetes//Pod/{self.ns}/{name}" in self.node.held

    def own(self) -> set[str]:
        """What the node holds of this test's namespace."""
        return {name for name in self.node.held if f"/{self.ns}/" in name or name.startswith(f"{self.ns}/")}

    @property
    def away(self) -> int:
        assert self.controller.cluster is not None
        return len(self.controller.cluster.source.away)


@contextlib.asynccontextmanager
async def stage(server: ApiAlone, tmp_path: Path, *, elect: bool = False) -> AsyncIterator[Stage]:
    api, ns = server.api(), fresh("faults")
    await define(api)
    await namespace(api, ns)
    with Doorkeeper(server, tmp_path) as door:
        settings = Config(
            state=tmp_path / "state",
            drain_s=0.2,
            source=SourceConfig(source="kubernetes", kubeconfig=door.kubeconfig),
            election=ElectionConfig(elect=elect, lease_namespace=ns),
            serve=ServeConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0"),
        )
        async with running(settings) as controller, node(controller, tmp_path) as far, far.streaming():
            one = Stage(api, door, controller, far, ns)
            await one.put_pod("before", 1)
            await put(api, policy("deny", DENY, ns=ns))
            await until(lambda: one.has("before") and f"{ns}/deny" in far.held, "the node is served")
            yield one


REFUSALS = [Deed(429, {"Retry-After": "1"}), Deed(500), Deed(503), Deed(401), Deed(403), Deed(404), Deed(410)]


async def be_refused(server: ApiAlone, folder: Path, deed: Deed) -> None:
    async with stage(server, folder) as one:
        held, began = one.own(), time.monotonic()
        one.door.rule = lambda method, path: deed
        one.door.cut()
        await until(lambda: one.away >= 7, f"{deed.status}: every kind is said to be away")
        await one.put_pod("meanwhile", 2)
        await one.api.delete(AUTHORIZATION_POLICIES, "deny", one.ns)
        await asyncio.sleep(4)
        assert one.own() == held
        # Nine kinds, each at 0, 0.1, 0.3, 0.7, 1.5, 3.1 s; with a Retry-After every second. A list whose history is
        # gone is asked for twice more, the last time in one piece.
        assert one.door.count(began) < 9 * 8 * (3 if deed.status == 410 else 1), deed.status
        one.door.rule = pass_all

        def is_made_up_for() -> bool:
            return one.has("meanwhile") and f"{one.ns}/deny" not in one.node.held

        await until(is_made_up_for, f"{deed.status}: what was missed arrives", 40)
        await until(lambda: not one.away, f"{deed.status}: all is well", 40)
        assert one.has("before")


def test_a_server_that_refuses_everything_takes_nothing_and_is_not_stormed(
    api_server: ApiAlone, tmp_path: Path
) -> None:
    for deed in REFUSALS:
        (tmp_path / str(deed.status)).mkdir()

    async def test() -> None:
        await define(api_server.api())
        async with asyncio.TaskGroup() as group:
            for deed in REFUSALS:
                group.create_task(be_refused(api_server, tmp_path / str(deed.status), deed))

    asyncio.run(test())


def test_a_slow_server_delays_and_loses_nothing(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path, elect=True) as one:
            assert one.controller.cluster is not None
            leadership = one.controller.cluster.leadership
            await until(lambda: leadership.is_leader, "it leads")
            one.door.rule = lambda method, path: Deed(wait_s=3.0)
            one.door.cut()
            for number in range(10):
                await one.put_pod(f"slow-{number}", 10 + number)
            await one.api.delete(PODS, "before", one.ns, grace_s=0)
            await until(lambda: all(one.has(f"slow-{number}") for number in range(10)), "all of them", 40)
            await until(lambda: not one.has("before"), "the removal")
            await put(one.api, policy("slow", DENY, ns=one.ns))
            await until(lambda: is_accepted(one.api, "slow", one.ns), "its author is told", 40)
            for _ in range(40):
                await asyncio.sleep(0.2)
                assert leadership.is_leader

    asyncio.run(test())


def test_history_that_is_gone_is_listed_again_and_nothing_is_sent_twice(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            for number in range(20):
                await one.put_pod(f"p{number}", 10 + number)
            await until(lambda: one.has("p19"), "the pods")
            refused: set[str] = set()
            listed: set[str] = set()

            def forget(method: str, path: str) -> Deed:
                """No watch goes on from where it was, until a list is asked for."""
                collection, _, query = path.partition("?")
                if "watch=true" not in query:
                    listed.update({collection} if "limit=1" not in query.split("&") else ())
                    return Deed()
                if collection in listed:
                    return Deed()
                refused.add(collection)
                return Deed(410)

            one.door.rule = forget
            before = len(one.node.updates)
            one.door.cut()
            await until(lambda: len(listed & refused) >= 9, "lists are asked for")
            await one.put_pod("after", 9)
            await until(lambda: one.has("after"), "what came after it")
            sent = [changed.name for update in one.node.updates[before:] for changed in update.changed]
            assert [name for name in sent if f"/{one.ns}/" in name] == [f"Kubernetes//Pod/{one.ns}/after"]
            assert not [name for update in one.node.updates[before:] for name in update.removed]

    asyncio.run(test())


def test_a_policy_that_was_replaced_by_another_of_its_name_while_nobody_looked(
    api_server: ApiAlone, tmp_path: Path
) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            name = f"{one.ns}/deny"
            first = one.node.held[name]
            one.door.rule = lambda method, path: Deed(500)
            one.door.cut()
            await until(lambda: one.away >= 7, "nobody looks")
            await one.api.delete(AUTHORIZATION_POLICIES, "deny", one.ns)
            other = replace_port(policy("deny", DENY, ns=one.ns), "81")
            await put(one.api, other)
            one.door.rule = pass_all
            await until(lambda: one.node.held.get(name, first) != first, "the other one", 40)
            removed = [gone for update in one.node.updates for gone in update.removed]
            assert name not in removed, "in between the node had no policy at all"

    asyncio.run(test())


def replace_port(document: dict[str, Any], port: str) -> dict[str, Any]:
    spec = {"action": "DENY", "rules": [{"to": [{"operation": {"ports": [port]}}]}]}
    return {**document, "spec": spec}


def test_storage_that_is_restored_under_a_whole_controller(own_server: ApiAlone, tmp_path: Path) -> None:
    """Lease, status and objects go back together; nodes end up with what the backup held, and what came after it."""

    async def test() -> None:
        async with stage(own_server, tmp_path, elect=True) as one:
            assert one.controller.cluster is not None
            leadership = one.controller.cluster.leadership
            await until(lambda: leadership.is_leader, "it leads")
            before = one.own()
            backup = await asyncio.to_thread(own_server.save)
            await one.put_pod("lost", 5)
            await put(one.api, policy("lost", DENY, ns=one.ns))
            await put(one.api, replace_port(policy("deny", DENY, ns=one.ns), "81"))
            await until(lambda: one.has("lost") and f"{one.ns}/lost" in one.node.held, "what will be lost", 40)
            await asyncio.to_thread(own_server.restore, backup)
            await until(lambda: one.own() == before, "what the backup held", 40)
            await put(one.api, policy("after", DENY, ns=one.ns))
            await until(lambda: f"{one.ns}/after" in one.node.held, "what came after it", 40)
            await until(lambda: is_accepted(one.api, "after", one.ns), "its author is told", 40)

    asyncio.run(test())


async def is_accepted(api: Api, name: str, ns: str) -> bool:
    found = await api.get(AUTHORIZATION_POLICIES, name, ns)
    return any(one["type"] == "Accepted" for one in found.get("status", {}).get("conditions", []))
