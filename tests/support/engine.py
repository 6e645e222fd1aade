"""An engine as tests drive it, straight over its border.

Without programs an accepted connection counts as addressed to the listener's own address. So a captured connection is
one to a listener on a service's VIP.
"""

import ipaddress
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from mesh.reasons import Reason
from tests.support.border import ffi, lib
from tests.support.pki import Credential
from tests.support.sockets import DEADLINE_S
from tests.support.tables import Tables


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as far as tests look."""

    kind: int
    reason: Reason
    direction: int
    path: int
    opened: bool
    status: int
    pod: int
    source: int
    destination: int
    policy: int
    sent: int
    received: int
    downstream: tuple[str, int]
    original: tuple[str, int]
    upstream: tuple[str, int]
    hbone: tuple[str, int]
    identity: str
    detail: str


def _endpoint(raw: Any) -> tuple[str, int]:
    ip = ipaddress.IPv6Address(bytes(ffi.buffer(raw.ip)))
    return str(ip.ipv4_mapped or ip), int(raw.port)


def _event(raw: Any) -> Event:
    return Event(
        kind=raw.kind,
        reason=Reason(raw.reason),
        direction=raw.direction,
        path=raw.path,
        opened=bool(raw.opened),
        status=raw.status,
        pod=raw.pod,
        source=raw.source,
        destination=raw.destination,
        policy=raw.policy,
        sent=raw.bytes_sent,
        received=raw.bytes_received,
        downstream=_endpoint(raw.downstream),
        original=_endpoint(raw.original),
        upstream=_endpoint(raw.upstream),
        hbone=_endpoint(raw.hbone),
        identity=ffi.string(raw.identity).decode(),
        detail=ffi.string(raw.detail).decode(),
    )


class Engine:
    """A running engine; leaves nothing behind."""

    def __init__(self, **settings: int) -> None:
        defaults = {
            "workers": 1,
            "notes_map": -1,
            "flows_map": -1,
            "connect_timeout_ms": 2000,
            "handshake_timeout_ms": 2000,
            "request_timeout_ms": 2000,
            "source_wait_ms": 1000,
            "pool_idle_ms": 60000,
            "ping_interval_ms": 10000,
            "ping_timeout_ms": 20000,
        }
        self._raw = lib.cv_engine_create(ffi.new("struct cv_settings *", defaults | settings))
        assert self._raw != ffi.NULL
        self._poll = select.poll()
        self._poll.register(lib.cv_engine_event_fd(self._raw), select.POLLIN)
        self.seen: list[Event] = []
        assert not lib.cv_engine_start(self._raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        lib.cv_engine_destroy(self._raw)

    def publish(self, tables: Tables) -> None:
        assert not lib.cv_engine_publish(self._raw, tables.take())

    def put_identity(self, identity: str, shown: Credential) -> int:
        return int(
            lib.cv_engine_put_identity(
                self._raw, identity.encode(), shown.chain.encode(), shown.key.encode(), shown.roots.encode()
            )
        )

    def add_pod(
        self,
        number: int,
        uid: str,
        identity: str,
        *,
        outbound: socket.socket | None = None,
        outbound6: socket.socket | None = None,
        inbound: socket.socket | None = None,
        hbone: socket.socket | None = None,
        netns: int = -1,
    ) -> int:
        def give(made: socket.socket | None) -> int:
            if made is None:
                return -1
            made.setblocking(False)
            return made.detach()

        raw = ffi.new("struct cv_pod_sockets *")
        text = [ffi.new("char[]", uid.encode()), ffi.new("char[]", identity.encode())]
        raw.number, raw.workload_uid, raw.identity = number, text[0], text[1]
        raw.netns = netns
        raw.outbound4, raw.outbound6 = give(outbound), give(outbound6)
        raw.inbound, raw.hbone = give(inbound), give(hbone)
        return int(lib.cv_engine_add_pod(self._raw, raw))

    def remove_pod(self, number: int, drain: bool = False) -> int:
        return int(lib.cv_engine_remove_pod(self._raw, number, drain))

    def drain(self, deadline_ms: int) -> None:
        assert not lib.cv_engine_drain(self._raw, deadline_ms)

    def stats(self) -> Any:
        raw = ffi.new("struct cv_stats *")
        lib.cv_engine_stats(self._raw, raw)
        return raw

    def connections(self) -> list[Event]:
        raw = ffi.new("struct cv_event[]", 64)
        count = lib.cv_engine_connections(self._raw, raw, 64)
        return [_event(raw[i]) for i in range(min(count, 64))]

    def poll_events(self, wait_s: float) -> None:
        self._poll.poll(wait_s * 1000)
        raw = ffi.new("struct cv_event[]", 256)
        count = lib.cv_engine_events(self._raw, raw, 256)
        self.seen += [_event(raw[i]) for i in range(count)]

    def wait(self, matches: Callable[[Event], bool]) -> Event:
        """The first event, seen already or to come, that matches; each is returned once."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for event in self.seen:
                if matches(event):
                    self.seen.remove(event)
                    return event
            left = deadline - time.monotonic()
            assert left > 0, f"no such event among {self.seen}"
            self.poll_events(left)

    def wait_closed(self) -> Event:
        return self.wait(lambda event: event.kind == lib.CV_EVENT_CLOSED)

    def wait_kind(self, kind: int) -> Event:
        return self.wait(lambda event: event.kind == kind)
