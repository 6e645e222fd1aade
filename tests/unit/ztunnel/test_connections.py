import asyncio
import io
import os
from collections import deque

from bpf.layout import Direction
from mesh.identity import Identity
from mesh.reasons import Reason
from tests.support.mesh import event
from tests.unit.ztunnel.mesh_builder import Lab, workload
from ztunnel.connections import BATCH, GATHER_S, EventPump, Names, Reporter
from ztunnel.events import ConnectionEvent, EventKind, Path
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.line_writer import LineWriter
from ztunnel.telemetry.metrics import ConnectionMetrics

CLIENT = workload("client", "10.0.0.1", node="node-a")
PEER = "spiffe://cluster.local/ns/other/sa/peer"


class Engine:
    def __init__(self, *events: ConnectionEvent) -> None:
        self.waiting = deque(events)

    def events(self, most: int) -> list[ConnectionEvent]:
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]

    def connections(self) -> list[ConnectionEvent]:
        return []


class Others:
    """Whoever else hears of events: pods and identities."""

    def __init__(self) -> None:
        self.removed_pods: list[int] = []
        self.hurried: list[Identity] = []
        self.drained = 0

    def removed(self, number: int) -> None:
        self.removed_pods.append(number)

    def hurry(self, identity: Identity) -> None:
        self.hurried.append(identity)

    def over(self) -> None:
        self.drained += 1


def reporter(
    *events: ConnectionEvent, out: LineWriter | io.StringIO | None = None
) -> tuple[Reporter, Others, io.StringIO, Engine]:
    lab, others, text, engine = Lab(CLIENT), Others(), io.StringIO(), Engine(*events)
    names = Names(lab.store)
    metrics = ConnectionMetrics(lambda: [])
    log = AccessLog(out or text, False, names.policy)
    made = Reporter(engine, names, metrics, log, others, others, others.over)  # type: ignore[arg-type]
    return made, others, text, engine


def test_events_reach_whom_they_concern() -> None:
    made, others, out, _ = reporter(
        event(kind=EventKind.CLOSED),
        event(kind=EventKind.IDENTITY, identity="spiffe://cluster.local/ns/shop/sa/web"),
        event(kind=EventKind.IDENTITY, identity="nonsense"),
        event(kind=EventKind.POD_REMOVED, pod=9),
        event(kind=EventKind.DRAINED),
    )
    assert made.take() == 5
    assert others.removed_pods == [9]
    assert others.hurried == [Identity("cluster.local", "shop", "web")]
    assert others.drained == 1
    assert out.getvalue().count("connection complete") == 1


def test_a_burst_is_taken_in_batches_and_whole_when_asked() -> None:
    made, _, out, engine = reporter(*[event() for _ in range(BATCH + 7)])
    assert made.take() == BATCH
    assert len(engine.waiting) == 7
    made.take_all()
    assert not engine.waiting
    assert out.getvalue().count("\n") == BATCH + 7


def test_a_principal_is_shown_only_where_it_was_proved() -> None:
    lab = Lab(CLIENT)
    names = Names(lab.store)
    number = lab.number("client")
    identity = str(lab.store.workload(number).identity)  # type: ignore[union-attr]
    outbound = names.edge(event(direction=Direction.OUTBOUND, source=number, identity=PEER))
    assert (outbound.source_principal, outbound.destination_principal) == (identity, PEER)
    inbound = names.edge(event(direction=Direction.INBOUND, destination=number, identity=PEER))
    assert (inbound.source_principal, inbound.destination_principal) == (PEER, identity)
    plain = names.edge(event(direction=Direction.INBOUND, destination=number, path=Path.PLAIN, identity=""))
    assert (plain.source_principal, plain.destination_principal, plain.mutual_tls) == ("", "", False)


def test_numbers_that_nobody_knows_are_nobody() -> None:
    names = Names(Lab(CLIENT).store)
    edge = names.edge(event(source=77, destination=78, service=79, reason=Reason.UNKNOWN_SOURCE))
    assert (edge.source, edge.destination, edge.service) == (None, None, None)
    assert names.policy(80) is None


def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    lines = LineWriter(full)
    made, others, _, _ = reporter(
        event(), event(), event(kind=EventKind.POD_REMOVED, pod=7), event(kind=EventKind.DRAINED), out=lines
    )
    made.take_all()
    lines.close(5)
    os.close(full)
    assert (lines.lost, others.removed_pods, others.drained) == (2, [7], 1)


def test_events_are_gathered_for_a_moment_and_none_is_forgotten() -> None:
    taken: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ready = os.eventfd(0, os.EFD_NONBLOCK)

        def take() -> int:
            taken.append(loop.time())
            return os.eventfd_read(ready)

        with EventPump(loop, ready, take):
            started = loop.time()
            for _ in range(3):
                os.eventfd_write(ready, 1)
            await asyncio.sleep(GATHER_S * 5)
            os.eventfd_write(ready, 1)
            await asyncio.sleep(GATHER_S * 5)
        os.eventfd_write(ready, 1)
        await asyncio.sleep(GATHER_S * 5)
        os.close(ready)
        assert taken[0] - started >= GATHER_S * 0.9

    asyncio.run(run())
    assert len(taken) == 2
