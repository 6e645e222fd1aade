"""A joined machine's side: finds the home, mirrors its objects, runs the pods of one node, reports how they are.

When the home cannot be reached, the pods run on with what is known, and the machine knocks until it is back. When the
home says that the lab ends, or answers as another lab, this machine's part ends too.
"""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lab import components
from lab.cluster import Cluster
from lab.manifests import Ref, ref_of
from lab.network import Network
from lab.paths import LabPaths
from lab.plan import MAX_NODES
from lab.span import secret
from lab.span.home import PROTOCOL
from lab.span.link import SPEAK_EVERY_S, Link, LinkLost, WrongToken, connect, together
from lab.span.options import Span, endpoint
from lab.span.overlay import Overlay

log = logging.getLogger(__name__)

# `lab up` waits a little longer than this for a supervisor that takes orders.
JOIN_DEADLINE_S = 15.0
# A home that is just being started does not know its nodes yet.
REFUSED_FOR_S = 5.0
KNOCK_EVERY_S = 1.0
# Between looks at what no event announces: what the node's agent says of pods.
LOOK_EVERY_S = 0.25


class JoinRefused(Exception):
    """The home does not take this machine, for a reason that a person has to act on."""


class LabEnded(Exception):
    """There is no lab any more to which this machine could belong."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the home says of the lab."""

    lab: str
    with_mesh: bool
    settings: str
    life: str
    index: int


class Door:
    """Knows the way to the home."""

    def __init__(self, address: str, port: int, token: bytes, node: str) -> None:
        self.node = node
        self.network_id = secret.network_id(token)
        self._address = address
        self._port = port
        self._context = secret.joined_context(token)
        self._instance = str(uuid.uuid4())

    async def enter(self) -> tuple[Link, Welcome]:
        """Join, or join again; raises LinkLost and JoinRefused."""
        link = await connect(self._address, self._port, self._context, secret.HOME)
        try:
            hello = {"protocol": PROTOCOL, "node": self.node, "instance": self._instance, "address": link.own_address}
            await link.send("hello", hello)
            kind, body = await link.receive()
            if kind == "refused":
                raise JoinRefused(str(body.get("reason")))
            return link, _welcome(kind, body)
        except BaseException:
            link.close()
            raise

    async def enter_within(self, deadline_s: float) -> tuple[Link, Welcome]:
        """Knock until the door opens; raises LinkLost or JoinRefused with the last reason."""
        begin = time.monotonic()
        while True:
            try:
                return await self.enter()
            except WrongToken:
                raise
            except (LinkLost, JoinRefused) as error:
                patience_s = min(deadline_s, REFUSED_FOR_S) if isinstance(error, JoinRefused) else deadline_s
                if time.monotonic() + KNOCK_EVERY_S > begin + patience_s:
                    raise
            await asyncio.sleep(KNOCK_EVERY_S)


@dataclass(frozen=True, slots=True)
class Entered:
    """A door, open: the first connection and what the home said."""

    door: Door
    link: Link
    welcome: Welcome


async def enter(paths: LabPaths, span: Span) -> Entered:
    """Join for the first time; raises InvalidToken, LinkLost, JoinRefused, OSError."""
    address, port = endpoint(span.join)
    door = Door(address, port, secret.keep_token(paths, span), span.local[0])
    try:
        return Entered(door, *await door.enter_within(JOIN_DEADLINE_S))
    except LinkLost as error:
        raise LinkLost(f"no lab can be joined at {span.join}: {error}") from error
    except JoinRefused as error:
        raise JoinRefused(f"the lab at {span.join} does not take this machine: {error}") from error


class Joined:
    """The part of a lab that runs on this machine, after its first welcome."""

    def __init__(self, entered: Entered, cluster: Cluster, network: Network) -> None:
        door, link = entered.door, entered.link
        self.node, self.index = door.node, entered.welcome.index
        self._door = door
        self._link: Link | None = link
        self._welcome = entered.welcome
        self._cluster = cluster
        self._network = network
        self._seen = 0
        self._refused: dict[Ref, tuple[str, str]] = {}
        self._wake = asyncio.Event()
        self.overlay = Overlay(network.fabric_path, door.network_id, link.own_address)
        self.home_address = link.peer_address
        cluster.watch(self._wake.set)

    async def begin(self, add_node: Callable[[dict[str, str]], Awaitable[None]]) -> None:
        """Make the own node with its first credentials and take the first update; raises LinkLost and LabEnded."""
        assert self._link is not None, "entered"
        await add_node(_credentials(*await self._link.receive()))
        await self._take(*await self._link.receive())

    async def live(self, components_status: Callable[[], dict[str, Any]], credentials: Path) -> None:
        """Stay with the home until the lab ends; raises LabEnded."""
        while True:
            try:
                link = self._link or await self._return()
                await together(self._listen(link, credentials), self._report(link, components_status))
            except (LinkLost, JoinRefused) as error:
                log.warning("the home at %s is away: %s", self.home_address, error)
            if self._link is not None:
                self._link.close()
                self._link = None
            await asyncio.sleep(KNOCK_EVERY_S)

    def status(self) -> dict[str, Any]:
        """For `lab status`."""
        return {"home": self.home_address, "lab": self._welcome.lab, "connected": self._link is not None}

    async def _return(self) -> Link:
        link, welcome = await self._door.enter()
        if welcome != self._welcome:
            link.close()
            raise LabEnded("the home has started a new lab")
        if link.own_address != self.overlay.own_address:
            link.close()
            raise LabEnded("this machine has another address now")
        self._link = link
        return link

    async def _listen(self, link: Link, credentials: Path) -> None:
        while True:
            kind, body = await link.receive()
            if kind == "credentials":
                keep_credentials(credentials, _credentials(kind, body))
            else:
                await self._take(kind, body)

    async def _take(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "down":
            raise LabEnded("the lab was taken down")
        update = _update(kind, body)
        for name, index in update.nodes.items():
            if name not in self._network.nodes:
                await self._network.add_remote_node(name, index)
        await self.overlay.reach([self.home_address, *update.peers])
        gone = set(update.gone)
        if update.full:
            gone = set(self._cluster.refs()) - {ref_of(item) for item in update.put}
        refused = self._cluster.mirror(update.put, gone)
        for ref in gone | {ref_of(item) for item in update.put}:
            self._refused.pop(ref, None)
        uids = {ref_of(item): item["metadata"].get("uid", "") for item in update.put}
        self._refused |= {ref: (uids[ref], why) for ref, why in refused.items()}
        self._seen = update.number
        self._wake.set()

    async def _report(self, link: Link, components_status: Callable[[], dict[str, Any]]) -> None:
        said: dict[str, Any] = {}
        at = 0.0
        while True:
            self._wake.clear()
            rows = {**self._cluster.pods.reports(), **{uid: _failed(why) for uid, why in self._refused.values()}}
            body = {"seen": self._seen, "pods": rows, "components": components_status()}
            if body != said or time.monotonic() - at > SPEAK_EVERY_S:
                await link.send("report", body)
                said, at = body, time.monotonic()
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue


@dataclass(frozen=True, slots=True)
class _Update:
    number: int
    full: bool
    put: list[dict[str, Any]]
    gone: list[Ref]
    nodes: dict[str, int]
    peers: list[str]


def keep_credentials(folder: Path, files: dict[str, str]) -> None:
    """Write a node's credentials as the controller would: the key is for root alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in files.items():
        temporary = folder / f".{name}.new"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text)
        temporary.replace(folder / name)


def _welcome(kind: str, body: dict[str, Any]) -> Welcome:
    try:
        welcome = Welcome(**body)
    except TypeError as error:
        raise LinkLost(f"{kind} is no welcome") from error
    texts = (welcome.lab, welcome.settings, welcome.life)
    if kind != "welcome" or not all(isinstance(text, str) for text in texts) or not _is_index(welcome.index):
        raise LinkLost(f"{kind} is no welcome")
    return welcome


def _credentials(kind: str, body: dict[str, Any]) -> dict[str, str]:
    if kind == "down":
        raise LabEnded("the lab was taken down")
    files = {name: body[name] for name in components.CREDENTIAL_FILES if isinstance(body.get(name), str)}
    if kind != "credentials" or len(files) != len(body):
        raise LinkLost(f"{kind} holds no credentials")
    return files


def _update(kind: str, body: dict[str, Any]) -> _Update:
    try:
        gone = [Ref(*parts) for parts in body["gone"]]
        update = _Update(body["number"], body["full"], body["put"], gone, body["nodes"], body["peers"])
        for item in update.put:
            ref_of(item)
        for peer in update.peers:
            ip_address(peer)
        if kind != "update" or not isinstance(update.number, int) or not all(map(_is_index, update.nodes.values())):
            raise ValueError(kind)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LinkLost(f"{kind} is no update") from error
    return update


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_NODES


def _failed(why: str) -> dict[str, Any]:
    return {
        "status": {"phase": "Failed", "message": why, "conditions": [], "containerStatuses": []},
        "why": why,
        "mesh": {"asked": False, "state": "", "reason": ""},
    }
