"""A Kubernetes API server as a source: every kind that the mesh is made of, listed and watched.

Each kind is followed for itself (mesh.kube.follow); what they find is gathered for a moment and goes on as one
batch. The first batch waits until every kind is listed or known not to be defined: a world in which the policies are
missing because their list was slow must never be announced.

What is not understood is listed as a fault on its object, and a kind that cannot be followed for a while as a fault of
the source; what was known stays in force in both cases.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from controller.index.objects import Change, Kind
from controller.sources.base import STATUS_KINDS, Fault, ObjectKey, Sink, Written
from controller.sources.collected import Collected, Item, reduce
from controller.sources.definitions import Definitions, name_and_version, served
from mesh.kube import resources
from mesh.kube.api import Api, Selection
from mesh.kube.errors import ApiFault
from mesh.kube.follow import Follow, Pace
from mesh.kube.resources import Resource

log = logging.getLogger(__name__)

# Kinds change together (a rollout's pods and slices): a moment makes one batch of them.
GATHER_S = 0.005
# A watch that is opened again within this time is nobody's concern.
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Core:
    """A kind that every cluster has."""

    kind: Kind
    resource: Resource
    metadata_only: bool = False


@dataclass(frozen=True, slots=True)
class _Optional:
    """A kind that may be defined: under these versions, the best first."""

    kind: Kind
    group: str
    plural: str
    versions: tuple[str, ...]

    @property
    def definition(self) -> str:
        return f"{self.plural}.{self.group}"


_ISTIO, _GATEWAY = "security.istio.io", "gateway.networking.k8s.io"

CORE = (
    _Core(Kind.NAMESPACE, resources.NAMESPACES, metadata_only=True),
    _Core(Kind.NODE, resources.NODES, metadata_only=True),
    _Core(Kind.SERVICE_ACCOUNT, resources.SERVICE_ACCOUNTS, metadata_only=True),
    _Core(Kind.POD, resources.PODS),
    _Core(Kind.SERVICE, resources.SERVICES),
    _Core(Kind.ENDPOINT_SLICE, resources.ENDPOINT_SLICES),
)
OPTIONAL = (
    _Optional(Kind.AUTHORIZATION_POLICY, _ISTIO, "authorizationpolicies", ("v1", "v1beta1")),
    _Optional(Kind.PEER_AUTHENTICATION, _ISTIO, "peerauthentications", ("v1", "v1beta1")),
    _Optional(Kind.GATEWAY, _GATEWAY, "gateways", ("v1", "v1beta1")),
    _Optional(Kind.HTTP_ROUTE, _GATEWAY, "httproutes", ("v1", "v1beta1")),
    _Optional(Kind.GRPC_ROUTE, _GATEWAY, "grpcroutes", ("v1", "v1alpha2")),
    _Optional(Kind.TLS_ROUTE, _GATEWAY, "tlsroutes", ("v1", "v1alpha3", "v1alpha2")),
    _Optional(Kind.TCP_ROUTE, _GATEWAY, "tcproutes", ("v1", "v1alpha2")),
)


class KubernetesSource:
    """Feeds a sink from an API server until it is cancelled."""

    def __init__(self, api: Api, pace: Pace | None = None, patience_s: float = PATIENCE_S) -> None:
        self._api = api
        self._pace = pace or Pace()
        self._patience_s = patience_s
        self._sink: Sink | None = None
        self._collected = {one.kind: Collected(one.kind, self._take) for one in (*CORE, *OPTIONAL)}
        self._follows: dict[str, Follow[Item] | Follow[tuple[str, str]]] = {}
        self._stuck: dict[str, tuple[str, float]] = {}  # kinds that are defined and cannot be followed: why, since when
        self._definitions = Definitions()
        self._pending: dict[ObjectKey, Change] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        self._is_open = False
        self._faults: list[Fault] = []
        self._written: Mapping[ObjectKey, Written] = {}

    # --- what is known

    @property
    def written(self) -> Mapping[ObjectKey, Written]:
        """What stands on policies."""
        return self._written

    @property
    def away(self) -> Mapping[str, float]:
        """Kinds that are not followed now, and since when (monotonic seconds)."""
        return {name: one.standing.since for name, one in self._follows.items() if one.standing.fault}

    async def catch_up(self) -> None:
        """Return when what the API server holds now has reached the sink: after lists that began after this call."""
        async with asyncio.TaskGroup() as group:
            for follow in list(self._follows.values()):
                group.create_task(follow.catch_up())
        self._flush()

    # --- life

    async def run(self, sink: Sink) -> None:
        """List everything, then follow."""
        self._sink = sink
        async with asyncio.TaskGroup() as group:
            for core in CORE:
                selection = Selection(core.resource, metadata_only=core.metadata_only)
                follow = self._make_follow(core.kind, selection)
                self._follows[str(core.resource)] = follow
                group.create_task(follow.run(), name=f"follow-{core.resource}")
            group.create_task(self._follow_definitions(), name="follow-definitions")
            for optional in OPTIONAL:
                group.create_task(self._follow_optional(optional), name=f"follow-{optional.definition}")
            group.create_task(self._report_faults(), name="source-faults")

    async def _follow_definitions(self) -> None:
        selection = Selection(resources.DEFINITIONS, metadata_only=True)
        follow = Follow(self._api, selection, name_and_version, self._definitions, self._pace)
        self._follows[str(resources.DEFINITIONS)] = follow
        await follow.run()

    def _make_follow(self, kind: Kind, selection: Selection, *, may_vanish: bool = False) -> Follow[Item]:
        decode = partial(reduce, kind=kind, resource=selection.resource)
        return Follow(self._api, selection, decode, self._collected[kind], self._pace, may_vanish=may_vanish)

    async def _follow_optional(self, optional: _Optional) -> None:
        """Follow a kind while it is defined, under the version that is served then."""
        backoff = self._pace.backoff()
        while True:
            known = await self._definitions.version(optional.definition)
            if known is None:
                self._stuck.pop(optional.definition, None)
                self._collected[optional.kind].vanish()
                await self._definitions.change(optional.definition, None)
                continue
            try:
                resource = await served(self._api, optional.group, optional.plural, optional.versions)
                if resource is None:
                    self._refuse(optional)
                    await self._definitions.change(optional.definition, known)
                    continue
                if await self._follow_while_served(optional, resource):
                    backoff.reset()
            except ApiFault as fault:
                self._note_stuck(optional, str(fault))
            await asyncio.sleep(backoff.next_s())

    def _refuse(self, optional: _Optional) -> None:
        versions = ", ".join(optional.versions)
        self._note_stuck(optional, f"served in no version that is known here ({versions})")
        collected = self._collected[optional.kind]
        # Without policies that are there nothing may be announced; without routes nothing is missing yet.
        if not collected.is_listed and optional.kind not in STATUS_KINDS:
            collected.vanish()

    def _note_stuck(self, optional: _Optional, why: str) -> None:
        _, since = self._stuck.get(optional.definition, ("", time.monotonic()))
        self._stuck[optional.definition] = why, since

    async def _follow_while_served(self, optional: _Optional, resource: Resource) -> bool:
        """Returns when the definition is gone or serves another version; raises NotFound. Was anything listed?"""
        follow = self._make_follow(optional.kind, Selection(resource), may_vanish=True)
        self._follows[optional.definition] = follow
        running = asyncio.get_running_loop().create_task(follow.run(), name=f"follow-{resource}-{resource.version}")
        changing = asyncio.get_running_loop().create_task(self._until_another(optional, resource))
        try:
            await asyncio.wait({running, changing}, return_when=asyncio.FIRST_COMPLETED)
            for task in (running, changing):
                if task.done():
                    await task
        finally:
            del self._follows[optional.definition]
            for task in (running, changing):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(running, changing, return_exceptions=True)
        return follow.standing.lists > 0

    async def _until_another(self, optional: _Optional, resource: Resource) -> None:
        backoff = self._pace.backoff()
        while True:
            known = await self._definitions.version(optional.definition)
            if known is None:
                return
            try:
                now = await served(self._api, optional.group, optional.plural, optional.versions)
            except ApiFault as fault:
                await asyncio.sleep(backoff.next_s(fault.retry_after_s))
                continue
            if now is not None and now != resource:
                return
            await self._definitions.change(optional.definition, known)

    # --- to the sink

    def _take(self, changes: Sequence[Change]) -> None:
        """Take what one kind has found; also nothing, when it is listed or when only something written has changed."""
        for change in changes:
            self._pending.pop((change.kind, change.key), None)
            self._pending[change.kind, change.key] = change
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(GATHER_S, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._sink is None or not self._may_open():
            return
        changes, self._pending = list(self._pending.values()), {}
        have_moved = {kind for kind in STATUS_KINDS if self._collected[kind].take_moved()}
        if have_moved:
            self._written = {
                (kind, key): one for kind in STATUS_KINDS for key, one in self._collected[kind].written.items()
            }
        self._update_faults()
        if changes or not self._is_open:
            self._is_open = True
            self._sink.apply(changes)
        else:
            self._sink.look_again()

    def _may_open(self) -> bool:
        return self._is_open or all(one.is_listed for one in self._collected.values())

    async def _report_faults(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._patience_s))
            self._update_faults()

    def _update_faults(self) -> None:
        found = self._own_faults()
        for collected in self._collected.values():
            found += collected.faults.values()
        if found == self._faults or self._sink is None:
            return
        for fault in found:
            if fault not in self._faults:
                log.warning("%s", fault)
        self._faults = found
        self._sink.set_faults(found)

    def _own_faults(self) -> list[Fault]:
        now = time.monotonic()
        why = {name: (one.standing.fault, one.standing.since) for name, one in self._follows.items()}
        for name, follow in self._follows.items():
            if follow.standing.lists:
                self._stuck.pop(name, None)
        return [
            Fault(self._api.transport.host, "", "", f"{name} not followed, what is known stays: {fault}")
            for name, (fault, since) in (self._stuck | {name: one for name, one in why.items() if one[0]}).items()
            if now - since > self._patience_s
        ]
