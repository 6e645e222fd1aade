"""One node's ztunnel without eBPF programs: its real store, compiler and data path on addresses of 127/8.

Without programs an accepted connection counts as addressed to where it arrived. So the capture listener of a pod stands
on one port of every loopback address, and an application that dials `<workload's address>:<that port>` is a captured
one. Each node draws addresses of its own, so that tests that run side by side do not meet.
"""

import io
import itertools
import select
import time
from dataclasses import replace
from typing import Self

from mesh.addresses import to_bytes16
from mesh.reasons import Reason
from mesh.wire import authorization_pb2 as security
from mesh.wire import workload_pb2 as wire
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, Changed, Update
from tests.support.border import MODULE
from tests.support.pki import Credential, spiffe
from tests.support.sockets import DEADLINE_S, HBONE, listen, port_of
from ztunnel import config
from ztunnel.compile import Compiler
from ztunnel.connections import Names
from ztunnel.data_path import DataPath
from ztunnel.endpoints import Here
from ztunnel.events import ConnectionEvent, EventKind
from ztunnel.inpod.listeners import Listeners
from ztunnel.state import Store
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.process import EngineStats

NAMESPACE = "default"

# Short enough for a test to wait for, long enough for a machine that is busy.
_FAST = config.DataPath(
    workers=1,
    connect_timeout_ms=2000,
    handshake_timeout_ms=1500,
    request_timeout_ms=2000,
    source_wait_ms=1000,
    pool_idle_ms=60_000,
)


class Node:
    """A context manager that leaves nothing behind."""

    def __init__(self, **settings: int) -> None:
        self.store = Store(Here(node="here", network="", cluster_id="Kubernetes"))
        self._compiler = Compiler(self.store, MODULE)
        self.engine = DataPath(MODULE, replace(_FAST, **settings), -1, -1)
        self._poll = select.poll()
        self._poll.register(self.engine.event_fd, select.POLLIN)
        self._names = Names(self.store)
        self._pods = itertools.count(1)
        self._unread: list[ConnectionEvent] = []
        self.lines = io.StringIO()
        self._access_log = AccessLog(self.lines, False, self._names.policy)
        self.engine.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    # --- what the control plane says ---------------------------------------------------------------------------

    def workload(
        self, name: str, ip: str, *, here: bool = False, hbone: bool = True, account: str = "", serves: str = ""
    ) -> None:
        """Announce a workload, of its own service account unless told otherwise; it may serve a service."""
        message = wire.Workload(
            uid=f"Kubernetes//Pod/{NAMESPACE}/{name}",
            name=name,
            namespace=NAMESPACE,
            service_account=account or name,
            node="here" if here else "elsewhere",
            addresses=[to_bytes16(ip)[12:]],
            tunnel_protocol=wire.TunnelProtocol.HBONE if hbone else wire.TunnelProtocol.NONE,
        )
        if serves:
            message.services[f"{NAMESPACE}/{serves}"].SetInParent()
        self._apply(ADDRESS_TYPE, message.uid, wire.Address(workload=message).SerializeToString())

    def service(self, name: str, vip: str, ports: dict[int, int]) -> None:
        """Announce a service, by service port and target port."""
        message = wire.Service(name=name, namespace=NAMESPACE, hostname=name)
        message.addresses.add(address=to_bytes16(vip)[12:])
        for port, target in ports.items():
            message.ports.add(service_port=port, target_port=target)
        self._apply(ADDRESS_TYPE, f"{NAMESPACE}/{name}", wire.Address(service=message).SerializeToString())

    def allow_only(self, account: str) -> None:
        """A policy for the namespace that lets one service account in."""
        match = security.Match(
            service_accounts=[security.ServiceAccountMatch(namespace=NAMESPACE, serviceAccount=account)]
        )
        policy = security.Authorization(
            name=f"only-{account}",
            namespace=NAMESPACE,
            scope=security.Scope.NAMESPACE,
            action=security.Action.ALLOW,
            rules=[security.Rule(clauses=[security.Clause(matches=[match])])],
        )
        self._apply(AUTHORIZATION_TYPE, f"{NAMESPACE}/{policy.name}", policy.SerializeToString())

    def _apply(self, type_url: str, name: str, value: bytes) -> None:
        change = self.store.apply(Update(type_url, "n", (Changed(name, "1", value),), ()))
        assert not change.refused
        self.engine.publish(self._compiler.apply(change))

    # --- pods --------------------------------------------------------------------------------------------------

    def identity(self, account: str, shown: Credential) -> None:
        """Give the node a certificate for a service account."""
        self.engine.put_identity(spiffe(account), shown.chain, shown.key, shown.roots)

    def pod(self, name: str, ip: str, account: str = "") -> int:
        """Serve a pod: 15008 on its address; returns the port on which its connections are captured."""
        outbound, inbound, hbone = listen("0.0.0.0"), listen(ip), listen(ip, HBONE)
        port = port_of(outbound)
        for listener in (outbound, inbound, hbone):
            listener.setblocking(False)
        uid = f"Kubernetes//Pod/{NAMESPACE}/{name}"
        listeners = Listeners(0, outbound, None, inbound, hbone)
        self.engine.add_pod(next(self._pods), uid, spiffe(account or name), -1, listeners)
        return port

    # --- what it reports ---------------------------------------------------------------------------------------

    def _take(self, wait_s: float) -> None:
        self._poll.poll(wait_s * 1000)
        for event in self.engine.events(512):
            self._unread.append(event)
            if event.kind == EventKind.CLOSED:
                self._access_log.write([(event, self._names.edge(event))])

    def event(self, kind: EventKind) -> ConnectionEvent:
        """The next event of a kind; waits for it."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for event in self._unread:
                if event.kind == kind:
                    self._unread.remove(event)
                    return event
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind.name} event in {DEADLINE_S} s"
            self._take(left)

    def closed(self) -> tuple[Reason, ConnectionEvent]:
        """Why the next connection ended, and its event."""
        event = self.event(EventKind.CLOSED)
        return Reason(event.reason), event

    def log(self) -> str:
        """The access log so far."""
        self._take(0)
        return self.lines.getvalue()

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def is_quiet(self) -> bool:
        """Whether nothing is open and nothing is buffered."""
        stats = self.stats()
        return not (stats.connections_open or stats.bytes_buffered)
