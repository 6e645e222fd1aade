"""What the reporter does with events when a part of it cannot do its work."""

import errno
import io
from typing import Any, cast

from tests.support.mesh import event
from ztunnel.connections import Names, Reporter
from ztunnel.endpoints import Here
from ztunnel.events import ConnectionEvent, EventKind
from ztunnel.identity.manager import IdentityManager
from ztunnel.inpod.pods import PodTable
from ztunnel.state import Store
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.metrics import ConnectionMetrics


class Engine:
    def __init__(self, *events: ConnectionEvent) -> None:
        self.waiting = list(events)

    def events(self, most: int) -> list[ConnectionEvent]:
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return taken

    def connections(self) -> list[ConnectionEvent]:
        return []


class Pods:
    def __init__(self) -> None:
        self.gone: list[int] = []

    def removed(self, number: int) -> None:
        self.gone.append(number)


class Full(io.StringIO):
    """Standard output with a full disk behind it."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else() -> None:
    store, pods, drained = Store(Here("node-a", "", "Kubernetes")), Pods(), []
    engine = Engine(event(), event(), event(kind=EventKind.POD_REMOVED, pod=7), event(kind=EventKind.DRAINED))
    reporter = Reporter(
        engine,
        Names(store),
        ConnectionMetrics(lambda: ()),
        AccessLog(Full(), True, lambda number: None),
        cast(PodTable, pods),
        cast(IdentityManager, cast(Any, None)),
        lambda: drained.append(True),
    )
    reporter.take_all()
    assert (reporter.lines_lost, pods.gone, drained) == (2, [7], [True])
