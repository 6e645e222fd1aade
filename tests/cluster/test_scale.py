"""A controller with a thousand pods and twenty ztunnels: what is sent under churn, over a relist and over a restart.

No bar of time here: bench/path/control_plane.py measures that, at full size.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.alone import ApiAlone
from tests.cluster.scale.churn import Churn
from tests.cluster.scale.run import ControllerProcess, Ztunnels, populate, started
from tests.cluster.scale.world import PODS_PER_SERVICE, World
from tests.cluster.scale.writer import Writer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORLD = World(pods=1000, nodes=20)
PER_S, SECONDS = 50, 8

# What the whole process may have more for each pod than one without pods has.
KB_PER_POD = 60
_EMPTY_KB = 95_000


# Resources that a change is at most. An endpoint is the new one and a removal; a pod that goes is a removal, and before
# that the pod as unhealthy: the API server says of a pod that is deleted at once first that it is on its way.
_SENT = {"removal": 2, "endpoint": 2}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a test acts on."""

    controller: ControllerProcess
    ztunnels: Ztunnels
    churn: Churn

    async def received_by(self, doing: Callable[[], Awaitable[object]]) -> int:
        """Resources and removals that all ztunnels together were sent because of something."""
        before = await self.ztunnels.at_rest()
        await doing()
        after = await self.ztunnels.at_rest()
        return sum(after["received"]) - sum(before["received"])


@asynccontextmanager
async def scene(server: ApiAlone, folder: Path) -> AsyncIterator[Scene]:
    async with Writer(server.kubeconfig) as writer:
        await populate(server, WORLD, writer)
        async with started(server, folder) as controller, Ztunnels(controller, WORLD.nodes) as ztunnels:
            await ztunnels.at_rest()
            yield Scene(controller, ztunnels, Churn(WORLD, writer))


def test_each_ztunnel_gets_what_changed_and_nothing_else(own_server: ApiAlone, tmp_path: Path) -> None:
    async def test(server: ApiAlone) -> None:
        async with scene(server, tmp_path) as on:
            await _churn(on)
            await _relist(on)
            await _restart(on)
            await _memory(on)

    asyncio.run(test(own_server))


async def _churn(on: Scene) -> None:
    """Nothing lost, nothing sent that has not changed, encoded once for all."""
    encoded = await on.controller.metric("resources_encoded_total")
    received = await on.received_by(lambda: on.churn.run(PER_S, SECONDS))
    encoded = await on.controller.metric("resources_encoded_total") - encoded
    made = on.churn.made
    assert PER_S * SECONDS <= len(made) <= PER_S * SECONDS + 1
    most = sum(_SENT.get(one.kind, 1) for one in made)
    assert received <= most * WORLD.nodes, "more was sent than has changed"
    marks = await on.ztunnels.ask("marks")
    missing = [one for one in made if marks.get(one.mark, (0, 0, 0))[2] < WORLD.nodes]
    # Two changes of one object within one response are one: seldom here.
    assert len(missing) <= len(made) // 20, f"changes that did not reach every ztunnel: {missing}"
    # The pods that a policy selects are translated again with it, once however many ztunnels there are.
    with_policies = most + sum(PODS_PER_SERVICE for one in made if one.kind == "policy")
    assert 0 < encoded <= with_policies, "encoded more often than it changed: once per ztunnel?"
    await _all_hold_what_there_is(on)


async def _all_hold_what_there_is(on: Scene) -> None:
    rest: dict[str, Any] = await on.ztunnels.at_rest()
    assert len(rest["digests"]) == 1, "ztunnels differ"
    names = await on.ztunnels.ask("names")
    assert {name for name in names if "//Pod/" in name} == on.churn.pod_names()
    async with Ztunnels(on.controller, 1) as fresh:
        assert (await fresh.at_rest())["digests"] == rest["digests"], "one that comes now is told something else"


async def _relist(on: Scene) -> None:
    """Everything read anew, nothing sent."""

    async def read_again() -> None:
        while not await on.controller.read_again():
            pass

    assert await on.received_by(read_again) == 0


async def _restart(on: Scene) -> None:
    """A controller that was away sends what changed meanwhile."""

    async def restart() -> None:
        await on.controller.stop()
        await on.churn.change_label_of(0)
        await on.controller.start()

    assert await on.received_by(restart) == WORLD.nodes, "one pod has changed"
    assert set((await on.ztunnels.ask("held"))["streams"]) == {2}


async def _memory(on: Scene) -> None:
    _, most = on.controller.memory_kb()
    assert most < _EMPTY_KB + KB_PER_POD * WORLD.pods
