"""From one ztunnel of a node to the next, without a moment in which nobody accepts.

The old one listens on handover.sock. The new one first gets its configuration and the certificates of the old one's
pods; then it asks for each pod that the agent gives to it, and gets duplicates of the pod's listening sockets. They
are the same sockets: the kernel's slots and what waits to be accepted stay as they are, and both accept for a moment.
When it serves all pods it says `taken`: only then the old one closes its duplicates, and drains what is open.

    new -> old   {"hello": 1}          old -> new   {"hello": 1, "identities": [[namespace, account], ...]}
    new -> old   {"take": uid}         old -> new   {"kinds": ["outbound4", ...]} and that many descriptors, or none
    new -> old   {"taken": true}       old -> new   {"taken": true}, and the connection stays until one of them ends

Who ends in between harms nobody: before `taken` the old one serves on, and what it gave is the new one's own; when the
new one ends after it, the agent asks the old one again, which opens listeners of its own. A peer of another version, or
one that does not answer, hands nothing over: the new one waits for its end, ready to be the next.

Packets on SOCK_SEQPACKET; one conversation at a time. Nothing here decides who serves: the agent's word does.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mesh.seqpacket import PacketCut, PacketSocket
from ztunnel.inpod.listeners import KINDS

log = logging.getLogger(__name__)

VERSION = 1
MAX_PACKET_BYTES = 192 << 10  # what the default send buffer lets through
ANSWER_S = 3.0

Descriptors = dict[str, int]


class HandoverFault(Exception):
    """The other side is gone or says what cannot be understood; the text says which."""


class Conversation:
    """One end of a connection: requests and answers, one at a time."""

    def __init__(self, packets: PacketSocket) -> None:
        self._packets = packets

    async def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Raises HandoverFault."""
        try:
            await self._packets.send(json.dumps(message).encode(), descriptors)
        except OSError as error:
            raise HandoverFault(f"cannot be told: {error}") from error

    async def receive(self, deadline_s: float | None) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The next message; whoever takes it owns its descriptors. Raises HandoverFault."""
        try:
            async with asyncio.timeout(deadline_s):
                packet = await self._packets.receive()
        except TimeoutError:
            raise HandoverFault(f"says nothing for {deadline_s} s") from None
        except (OSError, PacketCut) as error:
            raise HandoverFault(str(error)) from error
        if packet is None:
            raise HandoverFault("gone")
        try:
            message = json.loads(packet.data)
            if isinstance(message, dict):
                return message, packet.descriptors
        except (ValueError, RecursionError):
            pass
        packet.close()
        raise HandoverFault("says what is no message")

    async def request(self, message: dict[str, Any]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Send, and hear the answer; raises HandoverFault."""
        await self.send(message)
        return await self.receive(ANSWER_S)

    def close(self) -> None:
        """End it."""
        self._packets.close()


class Predecessor:
    """The ztunnel that serves when this one starts; `is_able` says whether it hands over."""

    def __init__(self, conversation: Conversation, is_able: bool, identities: Sequence[tuple[str, str]]) -> None:
        self._conversation = conversation
        self._turn = asyncio.Lock()
        self._is_gone = False
        self.is_able = is_able
        self.identities = identities  # (namespace, service account) of its pods

    @classmethod
    async def find(cls, path: Path) -> "Predecessor | None":
        """The one that listens on the socket, if there is one."""
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(raw, str(path))
        except OSError:  # nobody has been here, or who was is dead
            raw.close()
            return None
        conversation = Conversation(PacketSocket(raw, MAX_PACKET_BYTES))
        try:
            answer, descriptors = await conversation.request({"hello": VERSION})
            _close_all(descriptors)
            if answer.get("hello") != VERSION:
                raise HandoverFault(f"speaks version {answer.get('hello')!r} of the hand-over, this one {VERSION}")
            identities = [(str(namespace), str(account)) for namespace, account in answer.get("identities", [])]
        except (HandoverFault, ValueError, TypeError) as fault:
            log.warning("the ztunnel before this one hands nothing over, its end is waited for: %s", fault)
            return cls(conversation, False, ())
        log.info("taking over from the ztunnel before this one, %d identities", len(identities))
        return cls(conversation, True, identities)

    async def take(self, uid: str) -> Descriptors:
        """Its listening sockets of a pod, ours from now on; empty when it has none to give."""
        if not self.is_able or self._is_gone:
            return {}
        async with self._turn:
            try:
                answer, descriptors = await self._conversation.request({"take": uid})
            except HandoverFault as fault:
                self._lost(fault)
                return {}
        kinds = answer.get("kinds")
        if not isinstance(kinds, list) or len(kinds) != len(descriptors) or not set(kinds) <= set(KINDS):
            _close_all(descriptors)
            return {}
        return dict(zip(kinds, descriptors, strict=True))

    async def taken(self) -> None:
        """Every pod is served here: it may stop to accept."""
        if not self.is_able or self._is_gone:
            return
        async with self._turn:
            try:
                _, descriptors = await self._conversation.request({"taken": True})
                _close_all(descriptors)
            except HandoverFault as fault:
                self._lost(fault)

    async def gone(self) -> None:
        """Return when it has ended."""
        while not self._is_gone:
            async with self._turn:
                try:
                    _, descriptors = await self._conversation.receive(None)
                    _close_all(descriptors)
                except HandoverFault as fault:
                    self._lost(fault)

    def close(self) -> None:
        """End the conversation: the one before takes it that this one is dead."""
        self._is_gone = True
        self._conversation.close()

    def _lost(self, fault: HandoverFault) -> None:
        if not self._is_gone:
            log.info("the ztunnel before this one: %s", fault)
        self._is_gone = True


class Serving(Protocol):
    """The pods that are served here."""

    def identities(self) -> Sequence[tuple[str, str]]:
        """Namespace and service account of each, without repetition."""

    def listening(self, uid: str) -> Descriptors:
        """A pod's listening sockets; they stay whose they are."""

    def hand_over(self, uids: Sequence[str]) -> None:
        """Accept no more for these."""


class Successors:
    """Waits for the next ztunnel and gives to it; an async context manager is not needed: `run` owns the socket."""

    def __init__(self, path: Path, pods: Serving, retired: Callable[[bool], None]) -> None:
        """`retired` hears True when another one serves, and False when that one has ended before us."""
        self._path = path
        self._pods = pods
        self._retired = retired

    async def run(self) -> None:
        """Listen and serve for as long as the task lives; raises OSError when the socket cannot be made."""
        while True:
            listener = _listen(self._path)
            try:
                taken = await self._until_taken(listener)
            finally:
                listener.close()
            log.info("the ztunnel after this one serves the pods now")
            self._retired(True)
            try:
                await self._until_end(taken)
            finally:
                taken.close()
            self._retired(False)

    async def _until_taken(self, listener: socket.socket) -> Conversation:
        """Serve one after the other until one has taken everything."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("cannot take the next ztunnel's call: %s", error)
                await asyncio.sleep(0.2)
                continue
            conversation = Conversation(PacketSocket(connected, MAX_PACKET_BYTES))
            try:
                if await self._give(conversation):
                    return conversation
            except HandoverFault as fault:
                log.warning("the ztunnel that was to come after this one: %s; serving on", fault)
            except BaseException:
                conversation.close()
                raise
            conversation.close()

    async def _give(self, conversation: Conversation) -> bool:
        """Whether everything was taken; raises HandoverFault."""
        message, descriptors = await conversation.receive(ANSWER_S)
        _close_all(descriptors)
        await conversation.send({"hello": VERSION, "identities": self._pods.identities()})
        if message.get("hello") != VERSION:
            await self._until_end(conversation)
            return False
        given: list[str] = []
        while True:
            message, descriptors = await conversation.receive(None)
            _close_all(descriptors)
            if "take" in message:
                found = self._pods.listening(str(message["take"]))
                await conversation.send({"kinds": list(found)}, list(found.values()))
                given += [str(message["take"])] if found else []
            elif "taken" in message:
                self._pods.hand_over(given)
                await conversation.send({"taken": True})
                return True
            else:
                raise HandoverFault("asks for what is not known here")

    @staticmethod
    async def _until_end(conversation: Conversation) -> None:
        while True:
            try:
                _, descriptors = await conversation.receive(None)
            except HandoverFault:
                return
            _close_all(descriptors)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(0o600)
        listener.listen(2)
        temporary.replace(path)  # in one step: whoever looks finds the one before or this one
    except OSError:
        listener.close()
        raise
    return listener


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
