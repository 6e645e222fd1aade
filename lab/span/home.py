"""The home's side of joined machines: takes their connections, sends each what it needs, takes their reports.

Each machine gets one full update and then what has changed since, in batches; each update has a number, which the
machine's reports give back. A machine that falls silent is away until it is back; its node stays.
"""

import asyncio
import logging
import socket
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from lab import components
from lab.ask import Refused
from lab.cluster import Cluster
from lab.manifests import Manifest, Ref
from lab.network import Network
from lab.span import secret
from lab.span.link import SILENCE_S, SPEAK_EVERY_S, Link, LinkLost, accept, together
from lab.span.machines import InvalidReport, Machine, Machines
from lab.span.overlay import Overlay
from mesh.aio import Background

log = logging.getLogger(__name__)

PROTOCOL = 1
# Strangers who connect hold a place for as long as a handshake may take, at most.
MAX_CONNECTIONS = 64
BATCH_S = 0.02
ACCEPT_PAUSE_S = 0.2
GOODBYE_S = 1.0

Issue = Callable[[str], Awaitable[dict[str, str]]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a joined machine is told of the lab once. `life` is another one after each start of the lab."""

    lab: str
    with_mesh: bool
    settings: str
    life: str = field(default_factory=lambda: str(uuid.uuid4()))


class Home:
    """Serves the machines that join."""

    def __init__(self, facts: Facts, token: bytes, cluster: Cluster, network: Network, machines: Machines) -> None:
        self._facts = facts
        self._context = secret.home_context(token)
        self.network_id = secret.network_id(token)
        self._cluster = cluster
        self._network = network
        self._machines = machines
        self._overlay: Overlay | None = None
        self._links: dict[str, Link] = {}
        self._connections = Background()
        self._open = 0
        self._listener: socket.socket | None = None
        self.issue: Issue = _no_credentials
        cluster.watch(self._objects_changed)

    def status(self) -> dict[str, Any]:
        """For `lab status`: the machines by node."""
        return {m.node: {"address": m.address, "joined": m.is_joined} for m in self._machines}

    def expect(self, node: str) -> None:
        """A node is for another machine."""
        self._machines.of(node)

    def components_of(self, node: str) -> dict[str, Any]:
        """What a machine last said of its components; nothing while it is away."""
        machine = self._machines.of(node)
        return machine.components if machine.is_joined else {}

    def listen(self, address: str, port: int) -> None:
        """Take the address; raises OSError when it is not this machine's or not free."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._listener = socket.create_server((address, port), family=family, backlog=MAX_CONNECTIONS)
        except OSError as error:
            raise OSError(error.errno, f"listening for other machines on {address}: {error.strerror}") from error
        self._listener.setblocking(False)

    async def serve(self, overlay: Overlay) -> None:
        """Serve until cancelled; `listen` comes first."""
        assert self._listener is not None, "listening"
        self._overlay = overlay
        with self._listener:
            async with self._connections:
                while True:
                    await self._accept(self._listener)

    async def _accept(self, listener: socket.socket) -> None:
        try:
            sock, peer = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:  # no descriptor is left: the peers wait in the backlog
            log.warning("no connection is taken: %s", error)
            await asyncio.sleep(ACCEPT_PAUSE_S)
            return
        if self._open >= MAX_CONNECTIONS:
            log.warning("machine %s: refused, %d connections are open", peer[0], self._open)
            sock.close()
            return
        self._open += 1
        self._connections.run_once(self._converse(sock, peer[0]), f"machine {peer[0]}")

    async def say_goodbye(self) -> None:
        """Tell all machines that the lab ends; nobody waits for them any more."""
        for machine in self._machines:
            machine.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.gather(*(_try_send(link, "down", {}) for link in self._links.values()))

    async def _converse(self, sock: socket.socket, peer: str) -> None:
        link = None
        try:
            link = await accept(sock, self._context)
            await self._welcome(link)
        except LinkLost as error:
            log.info("machine %s: %s", peer, error)
        except Exception:
            log.exception("machine %s", peer)
        finally:
            self._open -= 1
            if link is not None:
                link.close()

    async def _welcome(self, link: Link) -> None:
        kind, hello = await link.receive()
        fault = self._fault(kind, hello, link)
        if fault:
            await link.send("refused", {"reason": fault})
            raise LinkLost(f"refused: {fault}")
        machine = self._machines.of(hello["node"])
        previous = self._links.get(machine.node)
        if previous is not None:
            previous.close()
        self._links[machine.node] = link
        machine.join(hello["instance"], link.peer_address)
        log.info("%s has joined from %s", machine.node, machine.address)
        try:
            await self._share_peers()
            await self._talk(link, machine)
        finally:
            if self._links.get(machine.node) is link:
                del self._links[machine.node]
                machine.leave()
                await self._share_peers()

    def _fault(self, kind: str, hello: dict[str, Any], link: Link) -> str | None:
        name, instance = hello.get("node"), hello.get("instance")
        if kind != "hello" or hello.get("protocol") != PROTOCOL or not isinstance(instance, str):
            return "it runs another version of Culvert"
        if hello.get("address") != link.peer_address:
            return f"it is {hello.get('address')} there and {link.peer_address} here: addresses must not be translated"
        node = self._network.nodes.get(name) if isinstance(name, str) else None
        if node is None or node.is_local:
            others = [n.name for n in self._network.nodes.values() if not n.is_local]
            return f"{name!r} is no node for another machine; these are: {', '.join(others) or 'none'}"
        machine = self._machines.of(node.name)
        if machine.is_joined and machine.instance != instance:
            return f"{name} runs on {machine.address} already"
        return None

    async def _talk(self, link: Link, machine: Machine) -> None:
        plan = self._network.nodes[machine.node].plan
        await link.send("welcome", {**asdict(self._facts), "index": plan.index})
        await link.send("credentials", await self._credentials(machine.node))
        await together(
            self._send_updates(link, machine), self._take_reports(link, machine), self._renew(link, machine.node)
        )

    async def _send_updates(self, link: Link, machine: Machine) -> None:
        sent: dict[Ref, Manifest] = {}
        full = True
        while True:
            machine.due.clear()
            view = self._cluster.view(machine.node)
            put = [item for ref, item in view.items() if sent.get(ref) != item]
            gone = [[ref.kind, ref.namespace, ref.name] for ref in sent if ref not in view]
            number = machine.number_update()
            body = {"number": number, "full": full, "put": put, "gone": gone, "nodes": self._indexes()}
            await link.send("update", {**body, "peers": self._peers()})
            sent, full = view, False
            with suppress(TimeoutError):
                async with asyncio.timeout(SPEAK_EVERY_S):
                    await machine.due.wait()
            await asyncio.sleep(BATCH_S)

    async def _take_reports(self, link: Link, machine: Machine) -> None:
        while True:
            kind, body = await link.receive(SILENCE_S)
            if kind != "report":
                raise LinkLost(f"a joined machine sends reports, no {kind}")
            try:
                machine.take_report(body)
            except InvalidReport as error:
                raise LinkLost(str(error)) from error

    async def _renew(self, link: Link, node: str) -> None:
        while True:
            await asyncio.sleep(components.CREDENTIALS_RENEWED_EVERY_S)
            await link.send("credentials", await self._credentials(node))

    async def _credentials(self, node: str) -> dict[str, str]:
        try:
            return await self.issue(node)
        except Refused as error:
            raise LinkLost(str(error)) from error

    def _indexes(self) -> dict[str, int]:
        return {node.name: node.plan.index for node in self._network.nodes.values()}

    def _peers(self) -> list[str]:
        return [machine.address for machine in self._machines if machine.is_joined]

    async def _share_peers(self) -> None:
        assert self._overlay is not None, "called while serving"
        await self._overlay.reach(self._peers())
        self._objects_changed()

    def _objects_changed(self) -> None:
        for machine in self._machines:
            machine.due.set()


async def _no_credentials(_: str) -> dict[str, str]:
    return {}


async def _try_send(link: Link, kind: str, body: dict[str, Any]) -> None:
    with suppress(LinkLost):
        await link.send(kind, body)
