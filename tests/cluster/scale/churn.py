"""Changes at a rate, each with a mark of its own and the moments in which it was asked for and answered."""

import asyncio
import random
import time
from dataclasses import dataclass

from tests.cluster.scale.world import OUTSIDE, Item, World
from tests.cluster.scale.writer import Writer


@dataclass(frozen=True, slots=True)
class Made:
    """A change: its mark, which kind, when its request left and when that was answered (monotonic seconds)."""

    mark: str
    kind: str
    at: float
    answered: float


class Churn:
    """Two thirds of the changes are pods that go and pods that come for them, the rest labels, policies and endpoints.

    What a pod that is replaced costs the API server besides (it is made before it has an address, and marked before it
    goes) is not counted.
    """

    def __init__(self, world: World, writer: Writer, seed: int = 1) -> None:
        self._world = world
        self._writer = writer
        self._random = random.Random(seed)
        self._generations: dict[int, int] = {}
        self._busy: set[tuple[str, int]] = set()
        self._last = 0
        self.made: list[Made] = []

    async def run(self, per_s: float, seconds: float) -> None:
        """Begin so many changes per second, however long each takes; returns when all are done."""
        started, begun = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while begun < per_s * seconds:
                await asyncio.sleep(started + begun / per_s - time.monotonic())
                kind = self._random.choice(("pod", "pod", "pod", "label", "policy", "endpoint"))
                group.create_task(self._change(kind))
                begun += 2 if kind == "pod" else 1

    async def _change(self, kind: str) -> None:
        number = self._choose(kind)
        self._last += 1
        try:
            await getattr(self, f"_change_{kind}")(number, self._last)
        finally:
            self._busy.discard((_owner(kind), number))

    async def change_label_of(self, number: int) -> None:
        """Another label on one pod."""
        self._last += 1
        await self._change_label(number, self._last)

    def pod_names(self) -> set[str]:
        """Every pod that there is, as resources of it are called."""
        return {_resource(self._pod(number, "")) for number in range(self._world.pods)}

    def _choose(self, kind: str) -> int:
        """An object that no other change is at: the order of two would be anybody's guess."""
        size = {"policy": self._world.policies, "endpoint": OUTSIDE}.get(kind, self._world.pods)
        free = self._random.sample(range(size), min(size, 50))
        number = next((one for one in free if (_owner(kind), one) not in self._busy), free[0])
        self._busy.add((_owner(kind), number))
        return number

    def _pod(self, number: int, mark: str) -> Item:
        return self._world.pod(number, self._generations.get(number, 0), mark)

    def _note(self, mark: str, kind: str, began: float) -> None:
        self.made.append(Made(mark, kind, began, time.monotonic()))

    async def _change_pod(self, number: int, change: int) -> None:
        """Another pod in the place of one; what comes counts from the moment in which it gets its address."""
        mark = f"m-{change:08d}"
        old = self._pod(number, mark)
        self._note(_resource(old), "removal", await self._writer.delete(old))
        self._generations[number] = self._generations.get(number, 0) + 1
        item = self._pod(number, mark)
        await self._writer.create(Item(item.resource, item.document))
        assert item.status is not None
        self._note(mark, "pod", await self._writer.patch(item, item.status, "status"))

    async def _change_label(self, number: int, change: int) -> None:
        mark = f"m-{change:08d}"
        patch = {"metadata": {"labels": {"version": mark}}}
        self._note(mark, "label", await self._writer.patch(self._pod(number, mark), patch))

    async def _change_policy(self, number: int, change: int) -> None:
        mark = f"m-{change:08d}"
        item = self._world.policy(number, mark)
        self._note(mark, "policy", await self._writer.patch(item, {"spec": item.document["spec"]}))

    async def _change_endpoint(self, number: int, change: int) -> None:
        address = f"100.{65 + (change >> 16)}.{change >> 8 & 255}.{change & 255}"
        item = self._world.outside_slice(number, address)
        patch = {"endpoints": item.document["endpoints"]}
        self._note(address, "endpoint", await self._writer.patch(item, patch))


def _resource(pod: Item) -> str:
    """The name of the pod's resource."""
    return f"Kubernetes//Pod/{pod.namespace}/{pod.name}"


def _owner(kind: str) -> str:
    return "pod" if kind == "label" else kind
