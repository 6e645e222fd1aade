"""The engine in Python's words: the one place of ztunnel that touches the border.

Every call returns at once; what the engine has to say comes as events when its descriptor is readable.
"""

import errno
import os
from typing import Any

from engine import border
from mesh.addresses import from_bytes16
from ztunnel import config
from ztunnel.events import ConnectionEvent, FlowDelta, SocketAddress
from ztunnel.inpod.listeners import Listeners
from ztunnel.telemetry.process import EngineStats

# Open connections asked for at once at first; the engine says how many there are, and then as many are asked for.
_FIRST_GUESS = 1024


class EngineFault(Exception):
    """The engine refused a call that it should take: out of memory, or a fault of ours."""


def load_border() -> Any:
    """The compiled module, with `ffi` and `lib`; raises EngineFault that says how to build it."""
    try:
        return border.load()
    except border.BorderUnavailable as error:
        raise EngineFault(str(error)) from error


class DataPath:
    """One running engine; used from the event loop only."""

    def __init__(self, module: Any, settings: config.DataPath, notes_fd: int, flows_fd: int) -> None:
        self._ffi = module.ffi
        self._lib = module.lib
        native = self._ffi.new(
            "struct cv_settings *",
            {
                "workers": settings.workers,
                "notes_map": notes_fd,
                "flows_map": flows_fd,
                "connect_timeout_ms": settings.connect_timeout_ms,
                "handshake_timeout_ms": settings.handshake_timeout_ms,
                "request_timeout_ms": settings.request_timeout_ms,
                "source_wait_ms": settings.source_wait_ms,
                "pool_idle_ms": settings.pool_idle_ms,
                "ping_interval_ms": settings.ping_interval_ms,
                "ping_timeout_ms": settings.ping_timeout_ms,
                "max_connections_per_pod": settings.max_connections_per_pod,
                "max_handshakes": settings.max_handshakes,
                "max_streams_per_tunnel": settings.max_streams_per_tunnel,
                "stream_buffer_bytes": settings.stream_buffer_bytes,
                "tunnel_buffer_bytes": settings.tunnel_buffer_bytes,
                "worker_buffer_bytes": settings.worker_buffer_bytes,
                "certificate_skew_ms": settings.certificate_skew_s * 1000,
                "expired_drain_ms": settings.expired_drain_s * 1000,
                "keepalive_s": settings.keepalive_s,
                "spin_us": settings.spin_us,
            },
        )
        self._engine = self._lib.cv_engine_create(native)
        if self._engine == self._ffi.NULL:
            raise EngineFault(f"engine: {os.strerror(self._ffi.errno)}")
        self._batch: Any = None

    def start(self) -> None:
        """Start the workers."""
        self._check("start", self._lib.cv_engine_start(self._engine))

    def close(self) -> None:
        """End the workers and every connection; may be called again."""
        if self._engine != self._ffi.NULL:
            self._lib.cv_engine_destroy(self._engine)
            self._engine = self._ffi.NULL

    def publish(self, tables: Any) -> None:
        """Decide by these tables from now on; they become the engine's."""
        self._check("publish", self._lib.cv_engine_publish(self._engine, tables))

    def drain(self, deadline_s: float) -> None:
        """Take nothing new, let what is open end, cut it at the deadline; a `drained` event follows."""
        self._check("drain", self._lib.cv_engine_drain(self._engine, int(deadline_s * 1000)))

    def put_identity(self, identity: str, chain_pem: str, key_pem: str, roots_pem: str) -> None:
        """Replace the certificate of an identity; open tunnels keep theirs."""
        status = self._lib.cv_engine_put_identity(
            self._engine, identity.encode(), chain_pem.encode(), key_pem.encode(), roots_pem.encode()
        )
        self._check(f"certificate of {identity}", status)

    def remove_identity(self, identity: str) -> None:
        """Forget a certificate."""
        status = self._lib.cv_engine_remove_identity(self._engine, identity.encode())
        if status != -errno.ENOENT:
            self._check(f"certificate of {identity}", status)

    def add_pod(self, number: int, workload_uid: str, identity: str, netns: int, listeners: Listeners) -> None:
        """Serve a pod; the descriptors become the engine's."""
        uid, name = self._ffi.new("char[]", workload_uid.encode()), self._ffi.new("char[]", identity.encode())
        outbound6 = listeners.outbound6
        pod = self._ffi.new(
            "struct cv_pod_sockets *",
            {
                "number": number,
                "workload_uid": uid,
                "identity": name,
                "netns": netns,
                "outbound4": listeners.outbound4.detach(),
                "outbound6": outbound6.detach() if outbound6 is not None else -1,
                "inbound": listeners.inbound.detach(),
                "hbone": listeners.hbone.detach(),
            },
        )
        self._check(f"pod {workload_uid}", self._lib.cv_engine_add_pod(self._engine, pod))

    def remove_pod(self, number: int, *, drain: bool) -> None:
        """Close a pod's listeners; its connections too, unless `drain`."""
        status = self._lib.cv_engine_remove_pod(self._engine, number, drain)
        if status != -errno.ENOENT:  # removed already, and its last event is on the way
            self._check(f"pod {number}", status)

    @property
    def event_fd(self) -> int:
        """Readable while events wait."""
        fd: int = self._lib.cv_engine_event_fd(self._engine)
        return fd

    def events(self, most: int) -> list[ConnectionEvent]:
        """The oldest events, at most so many."""
        if self._batch is None or len(self._batch) < most:
            self._batch = self._ffi.new("struct cv_event[]", most)
        count = self._lib.cv_engine_events(self._engine, self._batch, most)
        return [self._event(self._batch[index]) for index in range(count)]

    def connections(self) -> list[ConnectionEvent]:
        """Open connections with their figures so far."""
        room = _FIRST_GUESS
        while True:
            found = self._ffi.new("struct cv_event[]", room)
            count = self._lib.cv_engine_connections(self._engine, found, room)
            if count <= room:
                return [self._event(found[index]) for index in range(count)]
            room = count + _FIRST_GUESS

    def flows(self) -> list[FlowDelta]:
        """What the kernel counted on open sockets and has not yet added to its edges."""
        room = _FIRST_GUESS
        while True:
            found = self._ffi.new("struct cv_flow_delta[]", room)
            count = self._lib.cv_engine_flows(self._engine, found, room)
            if count <= room:
                return [
                    FlowDelta(flow.source, flow.destination, flow.direction, flow.sent, flow.received)
                    for flow in found[0:count]
                ]
            room = count + _FIRST_GUESS

    def stats(self) -> EngineStats:
        """Counters of all workers."""
        raw = self._ffi.new("struct cv_stats *")
        self._check("stats", self._lib.cv_engine_stats(self._engine, raw))
        return EngineStats(
            accepted=raw.accepted,
            refused=list(raw.refused),
            tunnels_opened=tuple(raw.tunnels_opened),
            tunnels_closed=tuple(raw.tunnels_closed),
            handshakes_failed=tuple(raw.handshakes_failed),
            handshakes_resumed=tuple(raw.handshakes_resumed),
            pool_hits=raw.pool_hits,
            pool_misses=raw.pool_misses,
            events_dropped=raw.events_dropped,
            bytes_buffered=raw.bytes_buffered,
            connections_open=raw.connections_open,
            tunnels_open=raw.tunnels_open,
            spun_us=raw.spun_us,
        )

    def _check(self, what: str, status: int) -> None:
        if status < 0:
            raise EngineFault(f"engine: {what}: {os.strerror(-status)}")

    def _event(self, raw: Any) -> ConnectionEvent:
        return ConnectionEvent(
            kind=raw.kind,
            direction=raw.direction,
            path=raw.path,
            reason=raw.reason,
            opened=bool(raw.opened),
            status=raw.status,
            pod=raw.pod,
            source=raw.source,
            destination=raw.destination,
            service=raw.service,
            policy=raw.policy,
            dry_run_policy=raw.dry_run_policy,
            connection=raw.connection,
            time_us=raw.time_us,
            duration_us=raw.duration_us,
            bytes_sent=raw.bytes_sent,
            bytes_received=raw.bytes_received,
            downstream=self._address(raw.downstream),
            original=self._address(raw.original),
            upstream=self._address(raw.upstream),
            hbone=self._address(raw.hbone),
            identity=self._text(raw.identity),
            detail=self._text(raw.detail),
        )

    def _address(self, raw: Any) -> SocketAddress | None:
        port = raw.port
        return SocketAddress(from_bytes16(self._ffi.buffer(raw.ip)[:]), port) if port else None

    def _text(self, raw: Any) -> str:
        text: bytes = self._ffi.string(raw)
        return text.decode(errors="replace") if text else ""
