"""The view compiled into the engine's tables, one change at a time.

The compiler owns a master copy that is never published. A change is put into it, and a clone of it, which shares all
that did not change, goes to the engine.
"""

import errno
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ztunnel.change import Change
from ztunnel.model import Mode, Policy, Service, Workload
from ztunnel.parse import InvalidResource
from ztunnel.program import encode
from ztunnel.state import Store
from ztunnel.view import Waypoint, WaypointKind

# A struct, or what cffi gives for one; the border has no types on the Python side.
CData = Any

# The engine's enum cv_waypoint_kind.
_KINDS = {WaypointKind.SERVICE: 1, WaypointKind.WORKLOAD: 2, WaypointKind.UNKNOWN: 3}


def policy_check(border: Any) -> Callable[[Policy], None]:
    """A function that raises InvalidResource for a policy that the engine would not take."""
    ffi, lib = border.ffi, border.lib
    scratch = ffi.gc(lib.cv_tables_create(), lib.cv_tables_destroy)

    def check(policy: Policy) -> None:
        if scratch == ffi.NULL:
            return  # no memory: what is put for real will say so
        try:
            error = _put_policy(ffi, lib, scratch, 1, policy)
        except (struct.error, UnicodeEncodeError) as fault:
            raise InvalidResource(policy.name, f"cannot be encoded for the engine: {fault}") from fault
        if error == -errno.EINVAL:
            raise InvalidResource(policy.name, "the engine does not take its rules")

    return check


class CompileError(Exception):
    """The engine did not take an object."""


@dataclass(slots=True)
class _Owed:
    """What the tables do not have yet, by number; an object that is gone meanwhile is in `removed` too."""

    workloads: set[int] = field(default_factory=set)
    services: set[int] = field(default_factory=set)
    policies: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)

    def add(self, change: Change) -> None:
        self.workloads |= change.workloads
        self.services |= change.services
        self.policies |= change.policies
        self.removed |= change.removed


class Compiler:
    """Keeps tables in step with a store. `border` is the cffi module (`engine._border`): its `ffi` and `lib`."""

    def __init__(self, store: Store, border: Any) -> None:
        self._store = store
        self._ffi = border.ffi
        self._lib = border.lib
        self._master = self._owned(self._lib.cv_tables_create())
        self._owed = _Owed()

    def apply(self, change: Change) -> CData:
        """Put a change into the tables and return a snapshot to publish, which then belongs to the caller.

        Raises CompileError when the engine cannot take it. The tables are then as before, and the next change brings
        this one along.
        """
        self._owed.add(change)
        working = self._owned(self._lib.cv_tables_clone(self._master))
        for number in self._owed.removed:
            self._remove(working, number)
        for number in self._owed.policies:
            if policy := self._store.policy(number):
                self._put_policy(working, number, policy)
        for number in self._owed.workloads:
            if workload := self._store.workload(number):
                self._put_workload(working, number, workload)
        for number in self._owed.services:
            if service := self._store.service(number):
                self._put_service(working, number, service)
        self._master, self._owed = working, _Owed()
        return self.snapshot()

    def snapshot(self) -> CData:
        """The tables as they are now; the caller publishes or destroys them."""
        tables = self._lib.cv_tables_clone(self._master)
        if tables == self._ffi.NULL:
            raise CompileError("no memory for a snapshot of the tables")
        return tables

    def _owned(self, tables: CData) -> CData:
        if tables == self._ffi.NULL:
            raise CompileError("no memory for tables")
        return self._ffi.gc(tables, self._lib.cv_tables_destroy)

    def _remove(self, tables: CData, number: int) -> None:
        error = self._lib.cv_tables_remove(tables, number)
        if error not in (0, -errno.ENOENT):  # unknown: it came and went in one update
            raise CompileError(f"removing number {number}: {os.strerror(-error)}")

    def _check(self, error: int, label: str) -> None:
        if error:
            raise CompileError(f"{label}: {os.strerror(-error)}")

    # --- objects -----------------------------------------------------------------------------------------------
    # What `new` gives must live until the call has copied it: every array is kept in a local name until then.

    def _text(self, text: str) -> CData:
        return self._ffi.new("char[]", text.encode())

    def _put_policy(self, tables: CData, number: int, policy: Policy) -> None:
        self._check(_put_policy(self._ffi, self._lib, tables, number, policy), policy.label)

    def _put_workload(self, tables: CData, number: int, workload: Workload) -> None:
        texts = [
            self._text(text)
            for text in (
                workload.uid,
                str(workload.identity),
                workload.namespace,
                workload.baggage,
                workload.network,
            )
        ]
        waypoint = self._store.waypoint_of_workload(workload)
        addresses = self._ffi.new("uint8_t[][16]", [list(ip) for ip in workload.addresses])
        is_local = self._store.is_local(workload)
        judges = self._store.policies_of(workload) if is_local else ()
        policies = self._ffi.new("uint32_t[]", judges)
        native = self._ffi.new(
            "struct cv_workload *",
            {
                "number": number,
                "uid": texts[0],
                "identity": texts[1],
                "namespace_": texts[2],
                "baggage": texts[3],
                "network": texts[4],
                "hbone": workload.hbone,
                "hidden": workload.host_network or workload.network != self._store.here.network,
                "foreign": not is_local,
                "waypoint": _waypoint(waypoint) if waypoint else (0, 0, 0, 0),
                "addresses": addresses,
                "address_count": len(workload.addresses),
                "policies": policies,
                "policy_count": len(judges),
            },
        )
        self._check(self._lib.cv_tables_put_workload(tables, native), workload.label)

    def _put_service(self, tables: CData, number: int, service: Service) -> None:
        hostname, namespace = self._text(service.hostname), self._text(service.namespace)
        groups = self._store.endpoints(number)
        endpoints = self._array("struct cv_service_endpoint[]", chain.from_iterable(groups.values()))
        waypoints = self._array("struct cv_waypoint_ref[]", map(_waypoint, self._store.waypoints_of_service(service)))
        here = self._store.here.network
        vips = self._array("struct cv_prefix[]", ((list(v.ip), v.length) for v in service.vips if v.network == here))
        ports = self._array("uint16_t[]", service.ports)
        texts = [self._text(name) for name in service.subject_names]
        names = self._array("char *[]", texts)
        native = self._ffi.new(
            "struct cv_service *",
            {
                "number": number,
                "hostname": hostname,
                "namespace_": namespace,
                "passthrough": service.mode is Mode.PASSTHROUGH,
                "namespace_only": service.namespace_only,
                "canonical": service.canonical,
                "families": service.families,
                "waypoints": waypoints,
                "waypoint_count": len(waypoints),
                "vips": vips,
                "vip_count": len(vips),
                "endpoints": endpoints,
                "endpoint_count": len(endpoints),
                "ports": ports,
                "port_count": len(ports),
                "subject_names": names,
                "subject_name_count": len(names),
            },
        )
        self._check(self._lib.cv_tables_put_service(tables, native), service.label)

    def _array(self, kind: str, items: Iterable[Any]) -> CData:
        return self._ffi.new(kind, list(items))


def _put_policy(ffi: Any, lib: Any, tables: CData, number: int, policy: Policy) -> int:
    name, program = ffi.new("char[]", policy.name.encode()), encode(policy)
    raw = ffi.from_buffer("uint8_t[]", program)
    native = ffi.new("struct cv_policy *", (number, name, policy.deny, policy.dry_run, raw, len(program)))
    return int(lib.cv_tables_put_policy(tables, native))


def _waypoint(waypoint: Waypoint) -> tuple[int, int, int, int]:
    """The engine's struct cv_waypoint_ref."""
    return _KINDS[waypoint.kind], waypoint.port, waypoint.number, waypoint.weight
