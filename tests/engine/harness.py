"""An engine as tests drive it, and sockets that stand for pods.

Without programs an accepted connection counts as addressed to the listener's own address. So a captured
connection is one to a listener on a service's VIP, and every address is one of 127/8 that this process drew.
"""

import ipaddress
import itertools
import os
import random
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from mesh.reasons import Reason
from tests.engine.border import load_border
from tests.engine.certificates import Credentials

_border = load_border()
ffi, lib = _border.ffi, _border.lib
HBONE = 15008
DEADLINE_S = 10.0

_draws = random.Random(os.getpid() ^ time.monotonic_ns())
_hosts = itertools.count(1)
_net = f"127.{_draws.randrange(16, 250)}.{_draws.randrange(0, 250)}"


def new_ip() -> str:
    """A loopback address that no other test uses."""
    n = next(_hosts)
    a, b, c = _net.split(".")
    return f"{a}.{b}.{(int(c) + n // 250) % 250}.{n % 250 + 1}"


def mapped(ip: str) -> bytes:
    parsed = ipaddress.ip_address(ip)
    return parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed


def listen(ip: str, port: int = 0, backlog: int = 1024) -> socket.socket:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((ip, port))
    made.listen(backlog)
    made.settimeout(DEADLINE_S)
    return made


def connect(address: tuple[str, int], source: str | None = None) -> socket.socket:
    return socket.create_connection(address, DEADLINE_S, (source, 0) if source else None)


def port_of(made: socket.socket) -> int:
    return int(made.getsockname()[1])


def read_exactly(made: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = made.recv(size - len(parts))
        if not part:
            raise EOFError(f"{len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)


def read_to_end(made: socket.socket) -> bytes:
    parts = bytearray()
    while part := made.recv(65536):
        parts += part
    return bytes(parts)


def is_reset(made: socket.socket) -> bool:
    """Reads until the connection ends; was it by a reset?"""
    try:
        read_to_end(made)
    except ConnectionResetError:
        return True
    return False


def is_refused(address: tuple[str, int]) -> bool:
    """Is a new connection reset? The reset may come before connect has returned."""
    try:
        with connect(address) as made:
            return is_reset(made)
    except ConnectionResetError:
        return True


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


class Tables:
    """Tables under construction; `take` gives them away."""

    def __init__(self) -> None:
        self._raw = lib.cv_tables_create()
        self._keep: list[Any] = []

    def _text(self, text: str) -> Any:
        made = ffi.new("char[]", text.encode())
        self._keep.append(made)
        return made

    def _new(self, type_: str, value: Any) -> Any:
        made = ffi.new(type_, value)
        self._keep.append(made)
        return made

    def workload(
        self,
        number: int,
        uid: str,
        identity: str,
        *ips: str,
        hbone: bool = True,
        policies: tuple[int, ...] = (),
        baggage: str = "k8s.namespace.name=default",
    ) -> Self:
        raw = ffi.new("struct cv_workload *")
        raw.number = number
        raw.uid = self._text(uid)
        raw.identity = self._text(identity)
        raw.namespace_ = self._text("default")
        raw.baggage = self._text(baggage)
        raw.network = self._text("")
        raw.hbone = hbone
        raw.addresses = self._new("uint8_t[][16]", [list(mapped(ip)) for ip in ips])
        raw.address_count = len(ips)
        raw.policies = self._new("uint32_t[]", list(policies))
        raw.policy_count = len(policies)
        assert not lib.cv_tables_put_workload(self._raw, raw)
        return self

    def service(
        self, number: int, vip: str, port: int, *endpoints: tuple[int, int], names: tuple[str, ...] = ()
    ) -> Self:
        """Endpoints are (workload number, target port)."""
        raw = ffi.new("struct cv_service *")
        raw.number = number
        raw.hostname = self._text(f"s{number}.default.svc.cluster.local")
        raw.namespace_ = self._text("default")
        vips = self._new("struct cv_prefix[]", 1)
        ffi.memmove(vips[0].ip, mapped(vip), 16)
        vips[0].length = 128
        raw.vips, raw.vip_count = vips, 1
        raw.endpoints = self._new(
            "struct cv_service_endpoint[]",
            [
                {"workload": workload, "service_port": port, "target_port": target, "weight": 1}
                for workload, target in endpoints
            ],
        )
        raw.endpoint_count = len(endpoints)
        raw.ports, raw.port_count = self._new("uint16_t[]", [port]), 1
        raw.subject_names = self._new("char *[]", [self._text(name) for name in names])
        raw.subject_name_count = len(names)
        assert not lib.cv_tables_put_service(self._raw, raw)
        return self

    def policy(self, number: int, program: bytes, deny: bool = False) -> Self:
        raw = ffi.new("struct cv_policy *")
        raw.number = number
        raw.name = self._text(f"default/p{number}")
        raw.deny = deny
        raw.program = self._new("uint8_t[]", program)
        raw.program_length = len(program)
        assert not lib.cv_tables_put_policy(self._raw, raw)
        return self

    def take(self) -> Any:
        raw, self._raw = self._raw, None
        return raw


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

    def put_identity(self, identity: str, credentials: Credentials) -> int:
        return int(
            lib.cv_engine_put_identity(
                self._raw, identity.encode(), credentials.chain, credentials.key, credentials.roots
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


def until(holds: Callable[[], bool]) -> None:
    """Waits for a condition that another thread makes true."""
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)
