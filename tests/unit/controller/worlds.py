"""A sink that remembers, and the source `kubernetes` that feeds it from a scripted API server."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from controller.index.captures import Captures
from controller.index.index import Index
from controller.index.objects import Change, Kind, Object
from controller.pipeline import Pipeline
from controller.serve.hub import Hub
from controller.serve.store import ResourceSet
from controller.sources.base import Fault
from controller.sources.kubernetes import KubernetesSource
from controller.status.metrics import Metrics
from controller.translate.compile import Inputs
from mesh.aio import Background
from mesh.kube.follow import Pace
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.support.waiting import until
from tests.unit.controller import recorded
from tests.unit.controller.fake_api import Document, FakeApi

PACE = Pace(shortest_backoff_s=0.01, longest_backoff_s=0.05, silence_s=5.0, shortest_watch_s=0.0, page_size=3)


class World:
    """A sink: everything it was told, in batches."""

    def __init__(self) -> None:
        self.batches: list[list[Change]] = []
        self.faults: Sequence[Fault] = ()
        self.objects: dict[tuple[Kind, str], Object] = {}
        self.looks = 0

    def apply(self, changes: Sequence[Change]) -> None:
        self.batches.append(list(changes))
        for change in changes:
            if change.object is None:
                self.objects.pop((change.kind, change.key), None)
            else:
                self.objects[change.kind, change.key] = change.object

    def set_faults(self, faults: Sequence[Fault]) -> None:
        self.faults = faults

    def look_again(self) -> None:
        self.looks += 1

    def keys(self, kind: Kind, ns: str) -> set[str]:
        return {key.partition("/")[2] for one, key in self.objects if one is kind and key.startswith(f"{ns}/")}

    def has(self, kind: Kind, key: str) -> bool:
        return (kind, key) in self.objects


@contextlib.asynccontextmanager
async def feeding(
    fake: FakeApi, tmp_path: Path, *, opens: bool = True
) -> AsyncIterator[tuple[World, KubernetesSource]]:
    world = World()
    async with fake.serving(tmp_path) as api, Background() as tasks:
        source = KubernetesSource(api, PACE, patience_s=0.1)
        tasks.start(source.run(world), "source")
        if opens:
            await until(lambda: bool(world.batches))
        yield world, source


def make_fake(*documents: Document) -> FakeApi:
    fake = FakeApi()
    fake.define("AuthorizationPolicy", "PeerAuthentication")
    fake.put(*documents)
    return fake


def snapshot(changes: Sequence[Change]) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """What nodes would be sent."""
    hub = _QuietHub([ResourceSet(ADDRESS_TYPE), ResourceSet(AUTHORIZATION_TYPE)])
    inputs = Inputs(Index(recorded.MESH.root_namespace), Captures(), recorded.MESH)
    Pipeline(inputs, hub, Metrics()).apply(changes)
    return {
        f"{type_url} {one.name}": (one.encoded, one.tags)
        for type_url, resources in hub.sets.items()
        for one in resources.resources()
    }


class _QuietHub(Hub):
    def changed(self) -> None:
        """Nobody listens."""
