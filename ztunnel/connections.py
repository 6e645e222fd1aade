"""Turns the engine's numbers into names, and its events into log lines and counters.

The engine knows workloads, services and policies by number and says who the peer proved to be; everything that people
read about a connection is put together here, once per event, on the event loop.
"""

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

log = logging.getLogger(__name__)

# Events taken from the engine at once; more wait there, so one burst does not starve the loop.
BATCH = 512


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
    ) -> None:
        self._engine = engine
        self._names = names
        self._metrics = metrics
        self._access_log = access_log
        self._pods = pods
        self._identities = identities
        self._drained = drained
        self.lines_lost = 0  # of the access log: nobody takes them, the disk behind it may be full

    def take(self) -> int:
        """Handle what waits, up to one batch; returns how many events there were."""
        events = self._engine.events(BATCH)
        ended: list[tuple[ConnectionEvent, Edge]] = []
        for event in events:
            if event.kind == EventKind.OPENED:
                self._metrics.opened(self._names.edge(event))
            elif event.kind == EventKind.CLOSED:
                edge = self._names.edge(event)
                self._metrics.closed(event, edge)
                ended.append((event, edge))
            elif event.kind == EventKind.IDENTITY:
                self._wanted(event.identity)
            elif event.kind == EventKind.POD_REMOVED:
                self._pods.removed(event.pod)
            elif event.kind == EventKind.DRAINED:
                self._drained()
        self._tell(ended)
        return len(events)

    def _tell(self, ended: list[tuple[ConnectionEvent, Edge]]) -> None:
        if self._access_log is None:
            return
        try:
            self._access_log.write(ended)
        except OSError as error:  # a log that cannot be written keeps nobody from connections, metrics or draining
            if not self.lines_lost:
                log.error("the access log cannot be written: %s; what it loses is counted", error)
            self.lines_lost += len(ended)

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
