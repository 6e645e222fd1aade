"""The connection to the node agent: it hands over pods, we serve them and acknowledge (ZDS).

The agent may go away at any time; pods are kept and served meanwhile, and the next connection begins with a snapshot
that corrects the table. A pod that cannot be added is acknowledged with the error, which the agent shows and retries.
"""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from mesh import seqpacket, zds
from mesh.identity import InvalidIdentity
from mesh.seqpacket import PacketSocket
from ztunnel.inpod.listeners import PortTaken
from ztunnel.inpod.pods import PodInfo, PodTable

log = logging.getLogger(__name__)

# Gives descriptors by the names of listeners.KINDS, the caller's from then on; empty when there are none.
Inherit = Callable[[str], Awaitable[Mapping[str, int]]]

BACKOFF_FIRST_S = 0.05
# A try on a local socket costs nothing, and an agent that is back waits for us before it captures anything.
BACKOFF_MAX_S = 1.0


class AgentLink:
    """Keeps a connection to the agent's socket and applies what comes to the pod table."""

    def __init__(self, path: Path, pods: PodTable) -> None:
        self._path = path
        self._pods = pods
        self.inherit: Inherit | None = None  # gives listening sockets of the ztunnel before this one, by pod uid
        self._may_connect = asyncio.Event()
        self._may_connect.set()
        self.snapshot = asyncio.Event()  # set once the first snapshot is complete
        self.failures: dict[str, str] = {}  # pods that could not be added, by uid
        self._backoff = BACKOFF_FIRST_S

    def hold(self, *, is_held: bool) -> None:
        """Whether not to connect any more: another ztunnel serves, and the agent listens to the latest that came."""
        if is_held:
            self._may_connect.clear()
        else:
            self._may_connect.set()

    async def run(self) -> None:
        """Connect, serve, and connect again for as long as the task lives."""
        while True:
            await self._may_connect.wait()
            try:
                await self._serve_once()
                log.info("the agent closed its socket %s", self._path)
            except (OSError, zds.RemoteProtocolError, seqpacket.PacketCut) as error:
                log.warning("agent at %s: %s; next try in %.2f s", self._path, error, self._backoff)
            await asyncio.sleep(self._backoff * random.uniform(0.8, 1.2))
            self._backoff = min(self._backoff * 2, BACKOFF_MAX_S)

    async def _serve_once(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as raw:
            raw.setblocking(False)
            await asyncio.get_running_loop().sock_connect(raw, str(self._path))
            packets = PacketSocket(raw, zds.MAX_PACKET_BYTES)
            try:
                await self._converse(packets)
            finally:
                packets.close()

    async def _converse(self, packets: PacketSocket) -> None:
        connection = zds.Connection(zds.Role.ZTUNNEL)
        await packets.send(connection.send(zds.Hello()))
        self._backoff = BACKOFF_FIRST_S
        named: set[str] = set()
        while (packet := await packets.receive()) is not None:
            try:
                message = connection.receive(packet.data, packet.descriptors)
            except zds.RemoteProtocolError:
                packet.close()
                raise
            error = await self._apply(message, packet.descriptors, named)
            await packets.send(connection.send(zds.Ack(error)))

    async def _apply(self, message: zds.Message, descriptors: tuple[int, ...], named: set[str]) -> str:
        match message:
            case zds.Add(uid, namespace, name, service_account):
                named.add(uid)
                return await self._add(PodInfo(uid, namespace, name, service_account or "default"), descriptors[0])
            case zds.Keep(uid):
                named.add(uid)
                return "" if uid in self._pods else f"pod {uid} is not known here"
            case zds.Del(uid):
                self.failures.pop(uid, None)
                self._pods.remove(uid)
                return ""
            case _:  # SnapshotSent, the only one left that the protocol lets an agent send
                self._pods.keep_only(named)
                self.snapshot.set()
                return ""

    async def _add(self, info: PodInfo, netns: int) -> str:
        try:
            inherited = await self._inherited(info.uid, netns)
        except BaseException:
            os.close(netns)
            raise
        try:
            self._pods.add(info, netns, inherited)
        except PortTaken as error:
            message = f"{zds.PORT_IN_USE}: {error}"
        except (InvalidIdentity, OSError) as error:
            message = str(error)
        else:
            self.failures.pop(info.uid, None)
            return ""
        self.failures[info.uid] = message
        log.warning("cannot serve pod %s/%s: %s", info.namespace, info.name, message)
        return message

    async def _inherited(self, uid: str, netns: int) -> Mapping[str, int]:
        if self.inherit is None or self._pods.is_served(uid, netns):
            return {}
        return await self.inherit(uid)
