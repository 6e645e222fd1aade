"""Pods of this node as the API server and the CNI plugin tell of them; a PodSource.

Two watches, the node's pods and the namespaces' labels, whose tables this module owns. A snapshot is made of both and
of the sandboxes that are known. While the API server is away what it said last stays in force: no pod leaves the mesh
because of that, and pods that start are asked for one by one, which fails then. A pod that is still being started and
has no sandbox yet is no pod for the agent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from daemonset.cluster.namespaces import Sandboxes, Sought
from daemonset.cluster.records import Record, decode
from daemonset.pods import Pod, Snapshot
from mesh.aio import Background
from mesh.kube.api import Api, Selection
from mesh.kube.documents import labels_of
from mesh.kube.errors import NotFound
from mesh.kube.follow import Follow, Pace
from mesh.kube.resources import NAMESPACES, PODS

T = TypeVar("T")

# A change is looked at this long after it was seen, so that a burst is looked at once.
SETTLE_S = 0.02
# Processes and namespaces change without a word.
RESYNC_S = 10.0
# Every process of the node is looked at for a pod whose sandbox nobody told of: 30 ms for a thousand of them, so not
# with each change while many pods start.
SEARCH_S = 1.0
# How long a pod that was asked for may be missing in a new list: the list may be of an older moment.
EARLY_S = 60.0
ASK_S = 5.0


@dataclass(slots=True)
class Table(Generic[T]):
    """What a watch has shown, by key."""

    key_of: Callable[[T], str]
    changed_at_all: Callable[[], None]
    items: dict[str, T] = field(default_factory=dict)
    is_complete: bool = False  # listed at least once

    def listed(self, items: Sequence[T]) -> None:
        """Everything there is."""
        self.items = {self.key_of(item): item for item in items}
        self.is_complete = True
        self.changed_at_all()

    def changed(self, items: Sequence[tuple[bool, T]]) -> None:
        """Objects as they are now."""
        for is_there, item in items:
            if is_there:
                self.items[self.key_of(item)] = item
            else:
                self.items.pop(self.key_of(item), None)
        self.changed_at_all()


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace's name and labels."""

    name: str
    labels: Mapping[str, str]


class ClusterSource:
    """Follows the API server; `sandboxes` is shared with the CNI gate."""

    def __init__(self, api: Api, node: str, sandboxes: Sandboxes, pace: Pace | None = None) -> None:
        self._api = api
        self._node = node
        self._sandboxes = sandboxes
        self._changed = asyncio.Event()
        self._pods: Table[Record] = Table(lambda record: record.uid, self.touch)
        self._namespaces: Table[Namespace] = Table(lambda one: one.name, self.touch)
        self._early: dict[str, tuple[float, Record]] = {}  # asked for, and not seen in the watch yet
        pods = Selection(PODS, field_selector=f"spec.nodeName={node}")
        namespaces = Selection(NAMESPACES, metadata_only=True)
        self._follow_pods = Follow(api, pods, decode, self._pods, pace)
        self._follow_namespaces = Follow(api, namespaces, _decode_namespace, self._namespaces, pace)
        self._searched = float("-inf")
        self._again: asyncio.TimerHandle | None = None
        self.observers: list[Callable[[], None]] = []

    @property
    def records(self) -> Mapping[str, Record]:
        """Every pod of the node, by uid."""
        return self._pods.items

    @property
    def fault(self) -> str:
        """Why the API server is not followed now; empty: it is."""
        return self._follow_pods.standing.fault or self._follow_namespaces.standing.fault

    def touch(self) -> None:
        """Something is another now; the next snapshot says what."""
        self._changed.set()

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        """What is known of a namespace."""
        namespace = self._namespaces.items.get(name)
        return namespace.labels if namespace is not None else {}

    async def look_up(self, namespace: str, name: str, uid: str) -> Record:
        """A pod of this node, asked for when the watch has not shown it yet; raises NotFound and other ApiFault.

        `uid` is the runtime's; empty fits any.
        """
        for record in self._known().values():
            if (record.namespace, record.name) == (namespace, name) and uid in ("", record.runtime_uid, record.uid):
                await self._know_namespace(namespace)
                return record
        record = decode(await self._api.get(PODS, name, namespace, timeout_s=ASK_S))
        if uid not in ("", record.runtime_uid, record.uid) or record.node != self._node:
            raise NotFound(f"pod {namespace}/{name} of node {self._node} has another uid, {record.uid}")
        await self._know_namespace(namespace)
        if record.uid not in self._pods.items:
            self._early[record.uid] = (asyncio.get_running_loop().time(), record)
            self.touch()
        return record

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """What is there once all is listed, again after each change, and every ten seconds in any case."""
        async with Background() as background:
            background.start(self._follow_pods.run(), "watch of pods")
            background.start(self._follow_namespaces.run(), "watch of namespaces")
            failed = background.run_once(background.failed(), "failure of a watch")
            last: Snapshot | None = None
            is_due = True
            while True:
                self._changed.clear()
                if self._pods.is_complete and self._namespaces.is_complete:
                    snapshot = self._snapshot()
                    if is_due or snapshot != last:
                        last = snapshot
                        yield snapshot
                for observe in self.observers:
                    observe()
                is_due = not await self._wait(failed)

    async def _wait(self, failed: asyncio.Task[None]) -> bool:
        """Whether something has changed, as opposed to time having passed; raises what a watch failed with."""
        changed = asyncio.get_running_loop().create_task(self._changed.wait(), name="change of pods")
        try:
            done, _ = await asyncio.wait({changed, failed}, timeout=RESYNC_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        if failed in done:
            failed.result()
        if changed in done:
            await asyncio.sleep(SETTLE_S)
        return changed in done

    async def _know_namespace(self, name: str) -> None:
        """A namespace can be younger than what the watch has shown; without its labels nothing is decided."""
        if name not in self._namespaces.items:
            found = _decode_namespace(await self._api.get(NAMESPACES, name, timeout_s=ASK_S))
            self._namespaces.items.setdefault(name, found)

    def _known(self) -> Mapping[str, Record]:
        now = asyncio.get_running_loop().time()
        for uid, (since, _) in list(self._early.items()):
            if uid in self._pods.items or now - since > EARLY_S:
                del self._early[uid]
        return {uid: record for uid, (_, record) in self._early.items()} | self._pods.items

    def _snapshot(self) -> Snapshot:
        running = {uid: record for uid, record in self._known().items() if not record.has_ended}
        self._sandboxes.keep_only(running)
        self._search(running.values())
        pods = {uid: pod for uid, record in running.items() if (pod := self._pod(record)) is not None}
        return Snapshot(pods, {name: one.labels for name, one in self._namespaces.items.items()})

    def _search(self, running: Iterable[Record]) -> None:
        """Find sandboxes of pods that have got so far as to have one, once a second at most."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._searched < SEARCH_S:
            if self._again is None:
                self._again = loop.call_later(SEARCH_S, self._search_again)
            return
        self._searched = loop.time()
        local = [one for one in running if not one.host_network and (one.addresses or one.uid in self._sandboxes)]
        self._sandboxes.search([Sought(one.uid, one.runtime_uid, one.addresses) for one in local])

    def _search_again(self) -> None:
        self._again = None
        self.touch()

    def _pod(self, record: Record) -> Pod | None:
        sandbox = self._sandboxes.get(record.uid)
        addresses = record.addresses or (sandbox.addresses if sandbox is not None else ())
        if not record.host_network and (sandbox is None or not addresses) and record.phase != "Running":
            return None  # still being started
        return Pod(
            uid=record.uid,
            namespace=record.namespace,
            name=record.name,
            service_account=record.service_account,
            node=record.node,
            addresses=addresses,
            netns=sandbox.path if sandbox is not None else "",
            labels=record.labels,
            host_network=record.host_network,
        )


def _decode_namespace(document: Mapping[str, Any]) -> Namespace:
    return Namespace(document["metadata"]["name"], labels_of(document))
