"""One line per connection, at its end: who, where to, how much, how long, and why it ended.

Keys and their order are those that users of Istio's ztunnel parse; ours are `dst.original_addr` (a service address that
was dialled), `reason` and `policy`. Lines of one batch of events are written at once.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from mesh.reasons import Reason
from ztunnel.events import ConnectionEvent, Path, SocketAddress
from ztunnel.model import HBONE_PORT
from ztunnel.telemetry.labels import Edge

# All but printable ASCII that cannot end a value: a name may not write to the terminal of who reads the log either.
_NEEDS_QUOTES = re.compile(r"[^!#-<>-~]").search

Fields = dict[str, str | int]
PolicyName = Callable[[int], str | None]


def fields(event: ConnectionEvent, edge: Edge, policy_name: PolicyName) -> Fields:
    """What a line says, in its order; a key without a value is left out."""
    reason = Reason(event.reason)
    policy = policy_name(event.policy) if event.policy else None
    dry_run = policy_name(event.dry_run_policy) if event.dry_run_policy else None
    found: dict[str, str | int | None] = {
        "src.addr": str(event.downstream) if event.downstream else None,
        "src.workload": edge.source.name if edge.source else None,
        "src.namespace": edge.source.namespace if edge.source else None,
        "src.identity": edge.source_principal or None,
        **_destination(event, edge),
        "dst.service": edge.service.hostname if edge.service else None,
        "dst.workload": edge.destination.name if edge.destination else None,
        "dst.namespace": edge.destination.namespace if edge.destination else None,
        "dst.identity": edge.destination_principal or None,
        "direction": "inbound" if edge.inbound else "outbound",
        "bytes_sent": event.bytes_sent,
        "bytes_recv": event.bytes_received,
        "duration": f"{event.duration_us / 1000:.0f}ms",
        "reason": str(reason),
        "policy": policy,
        "dry_run_policy": dry_run,
        "error": _error(event, reason, policy),
    }
    return {key: value for key, value in found.items() if value is not None}


def _destination(event: ConnectionEvent, edge: Edge) -> dict[str, str | None]:
    """`dst.addr` is where packets go, which is port 15008 for HBONE; `dst.hbone_addr` is what was asked for there."""
    if event.upstream is None:
        return {}
    original = str(event.original) if event.original and event.original != event.upstream else None
    if event.path != Path.HBONE:
        return {"dst.addr": str(event.upstream), "dst.original_addr": original}
    tunnel = SocketAddress(event.upstream.ip, HBONE_PORT) if edge.inbound else event.hbone
    return {
        "dst.addr": str(tunnel) if tunnel else None,
        "dst.hbone_addr": str(event.upstream),
        "dst.original_addr": original,
    }


def _error(event: ConnectionEvent, reason: Reason, policy: str | None) -> str | None:
    if reason is Reason.OK:
        return None
    parts = [str(reason).replace("_", " ")]
    if policy:
        parts.append(f"policy {policy}")
    if event.status and event.status != 200:
        parts.append(f"http status {event.status}")
    if event.detail:
        parts.append(event.detail)
    return ": ".join(parts)


class Output(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> int:
        """Take whole lines."""

    def flush(self) -> None:
        """See to it that they leave."""


class AccessLog:
    """Formats and writes; one writer, called from the event loop only."""

    def __init__(self, out: Output, as_json: bool, policy_name: PolicyName) -> None:
        self._out = out
        self._format = _as_json if as_json else _as_text
        self._policy_name = policy_name

    def write(self, batch: list[tuple[ConnectionEvent, Edge]]) -> None:
        """Write one line for each ended connection of a batch."""
        lines = [self._format(event, fields(event, edge, self._policy_name)) for event, edge in batch]
        if lines:
            self._out.write("".join(lines))
            self._out.flush()


def _level(event: ConnectionEvent) -> str:
    return "info" if event.reason == Reason.OK else "error"


def _time(event: ConnectionEvent) -> str:
    seconds, microseconds = divmod(event.time_us, 1_000_000)
    return f"{_second(seconds)}.{microseconds:06d}Z"


@lru_cache(4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _message(event: ConnectionEvent) -> str:
    return "connection complete" if event.opened else "connection failed"


def _as_text(event: ConnectionEvent, found: Fields) -> str:
    pairs = " ".join(f"{key}={_quoted(value)}" for key, value in found.items())
    return f"{_time(event)}\t{_level(event)}\taccess\t{_message(event)}\t{pairs}\n"


def _quoted(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    text = value
    return text if text and not _NEEDS_QUOTES(text) else json.dumps(text)


def _as_json(event: ConnectionEvent, found: Fields) -> str:
    line = {"level": _level(event), "time": _time(event), "scope": "access", "message": _message(event), **found}
    return json.dumps(line, separators=(",", ":")) + "\n"
