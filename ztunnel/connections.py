"""Turns the engine's numbers into names, and its events into log lines and counters.

The engine knows workloads, services and policies by number and says who the peer proved to be; everything that people
read about a connection is put together here, once per event, on the event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from bpf.layout import Direction
from mesh.identity import Identity, InvalidIdentity
from ztunnel.events import ConnectionEvent, EventKind, Path
from ztunnel.identity.manager import IdentityManager
from ztunnel.inpod.pods import PodTable
from ztunnel.model import Policy, Service, Workload
from ztunnel.state import Store
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.labels import Edge
from ztunnel.telemetry.metrics import ConnectionMetrics
from ztunnel.telemetry.recent import RecentFlows

log = logging.getLogger(__name__)

# Events taken from the engine at once; more wait there, so one burst does not starve the loop.
BATCH = 512
# Pause between the first event and taking it: under load a wake-up of this thread for each one is what costs. Short
# enough that a connection that waits for its certificate does not notice.
GATHER_S = 0.01


class EventSource(Protocol):
    """The engine, as far as this module needs it."""

    def events(self, most: int) -> list[ConnectionEvent]:
        """The oldest events, at most so many."""

    def connections(self) -> list[ConnectionEvent]:
        """Open connections with their figures so far."""


class Names:
    """Looks numbers up for people."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def workload(self, number: int) -> Workload | None:
        """The workload of a number, also when it is gone by now."""
        found = self._store.named(number) if number else None
        return found if isinstance(found, Workload) else None

    def service(self, number: int) -> Service | None:
        """The service of a number."""
        found = self._store.named(number) if number else None
        return found if isinstance(found, Service) else None

    def end(self, number: int) -> Workload | Service | None:
        """Whichever of the two a number of the kernel means."""
        return self.workload(number) or self.service(number)

    def policy(self, number: int) -> str | None:
        """The name of a policy, "namespace/name"."""
        found = self._store.named(number) if number else None
        return found.name if isinstance(found, Policy) else None

    def edge(self, event: ConnectionEvent) -> Edge:
        """Both ends of a connection. A principal is shown only where TLS proved it or the kernel did."""
        inbound = event.direction == Direction.INBOUND
        source, destination = self.workload(event.source), self.workload(event.destination)
        mutual_tls = event.path == Path.HBONE and bool(event.identity)
        local = destination if inbound else source
        own = str(local.identity) if local is not None and (mutual_tls or not inbound) else ""
        return Edge(
            inbound=inbound,
            source=source,
            destination=destination,
            service=self.service(event.service),
            source_principal=event.identity if inbound else own,
            destination_principal=own if inbound else event.identity,
            mutual_tls=mutual_tls,
        )


class Reporter:
    """Applies engine events; `drained` is called when the engine has let go of its last connection."""

    def __init__(
        self,
        engine: EventSource,
        names: Names,
        metrics: ConnectionMetrics,
        access_log: AccessLog | None,
        pods: PodTable,
        identities: IdentityManager,
        drained: Callable[[], None],
        recent: RecentFlows | None = None,
    ) -> None:
        self._recent = recent
        self._engine = engine
        self._names = names
        self._metrics = metrics
        self._access_log = access_log
        self._pods = pods
        self._identities = identities
        self._drained = drained

    def take(self) -> int:
        """Handle what waits, up to one batch; returns how many events there were."""
        events = self._engine.events(BATCH)
        ended: list[tuple[ConnectionEvent, Edge]] = []
        for event in events:
            if event.kind == EventKind.CLOSED:
                edge = self._names.edge(event)
                self._metrics.closed(event, edge)
                if self._recent is not None:
                    self._recent.ended(event, edge)
                ended.append((event, edge))
            elif event.kind == EventKind.IDENTITY:
                self._wanted(event.identity)
            elif event.kind == EventKind.POD_REMOVED:
                self._pods.removed(event.pod)
            elif event.kind == EventKind.DRAINED:
                self._drained()
        if self._access_log is not None:
            self._access_log.write(ended)
        return len(events)

    def take_all(self) -> None:
        """Handle everything that waits, before a scrape or at the end."""
        while self.take() == BATCH:
            pass

    def live(self) -> Iterable[tuple[ConnectionEvent, Edge]]:
        """Open connections with their figures, for a scrape."""
        return [(event, self._names.edge(event)) for event in self._engine.connections()]

    def _wanted(self, identity: str) -> None:
        try:
            self._identities.hurry(Identity.parse(identity))
        except InvalidIdentity:
            log.error("the engine asked for %r, which is no identity", identity)


class EventPump:
    """Has the reporter take events a moment after the engine has some; a context manager on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, take: Callable[[], int]) -> None:
        self._loop = loop
        self._fd = fd
        self._take = take
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "EventPump":
        self._loop.add_reader(self._fd, self._gather)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()

    def _gather(self) -> None:
        self._loop.remove_reader(self._fd)
        self._timer = self._loop.call_later(GATHER_S, self._taken)

    def _taken(self) -> None:
        self._timer = None
        self._loop.add_reader(self._fd, self._gather)
        self._take()
