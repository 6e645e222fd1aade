"""Connections that a pod accepted before it was enrolled: they live on until a policy forbids them.

No program has seen them, so they are found in the kernel's own list: established, inbound, from the network, past
ztunnel. Each time policies change, and when a pod is added, they are judged like any connection without an identity;
one that is refused is destroyed in the pod and logged. The node's probes, which pass by ztunnel too, are known by
their entry in the `expected` map and left alone.
"""

import asyncio
import logging

from bpf.plane import Plane
from mesh.addresses import to_bytes16
from mesh.reasons import Reason
from mesh.sockdiag import SockDiag, TcpSocket
from ztunnel import decide
from ztunnel.decide import Destination, Peer
from ztunnel.inpod.listeners import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT
from ztunnel.inpod.pods import Pod, PodTable
from ztunnel.state import Store

log = logging.getLogger(__name__)

_MESH_PORTS = frozenset({OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT})
_TCP_LISTEN = 1 << 10
# Policies come in bursts; one look at the sockets serves them all.
_SETTLE_S = 0.05


class EarlierConnections:
    """Finds and ends what policies forbid; one task, woken by `judge_soon`."""

    def __init__(self, store: Store, plane: Plane, pods: PodTable) -> None:
        self._store = store
        self._plane = plane
        self._pods = pods
        self._wake = asyncio.Event()
        self.destroyed = 0

    def judge_soon(self) -> None:
        """Policies or pods changed."""
        self._wake.set()

    async def run(self) -> None:
        """Judge whenever there is reason to."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_SETTLE_S)
            self._wake.clear()
            for pod in list(self._pods):
                try:
                    self._judge(pod)
                except OSError as error:
                    log.warning("sockets of pod %s/%s: %s", pod.info.namespace, pod.info.name, error)
                await asyncio.sleep(0)  # other work of the loop goes between two pods

    def _judge(self, pod: Pod) -> None:
        number = self._store.workload_number(pod.workload_uid)
        if not number or self._store.lets_pass_unguarded(pod.workload_uid):
            return
        with SockDiag(pod.netns) as sockets:
            for found in self._accepted(sockets):
                destination = Destination(to_bytes16(found.local), found.local_port)
                verdict = decide.inbound(self._store, number, Peer(None, to_bytes16(found.remote)), destination)
                if not verdict.allow and sockets.destroy(found):
                    self._tell(pod, found, verdict.policy)

    def _accepted(self, sockets: SockDiag) -> list[TcpSocket]:
        listening = {found.local_port for found in sockets.connections(_TCP_LISTEN)} - _MESH_PORTS
        return [
            found
            for found in sockets.established()
            if found.local_port in listening and not found.is_loopback and not self._is_probe(found)
        ]

    def _is_probe(self, found: TcpSocket) -> bool:
        return self._plane.is_expected(found.local, found.local_port, found.remote, found.remote_port)

    def _tell(self, pod: Pod, found: TcpSocket, policy_number: int) -> None:
        self.destroyed += 1
        policy = self._store.policy(policy_number)
        log.info(
            "closed a connection from before enrolment: %s:%d -> %s/%s port %d, reason=%s policy=%s",
            found.remote,
            found.remote_port,
            pod.info.namespace,
            pod.info.name,
            found.local_port,
            Reason.POLICY_CHANGED,
            policy.name if policy else "-",
        )
