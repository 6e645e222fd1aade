"""The agent's end of ZDS: a socket that ztunnels connect to, each told which pods to serve.

Usually there is one ztunnel; during its upgrade there are two. Pods are added at the latest, which has got all of them
in its snapshot, and deleted at all. What waits to be sent to a ztunnel is kept per pod, the last word only, so no
queue grows. When a ztunnel goes away nothing is un-enrolled: the kernel goes on capturing and refuses, the pods'
workers are told and ask again.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh import zds
from mesh.aio import Background
from mesh.seqpacket import PacketCut, PacketSocket

log = logging.getLogger(__name__)

# Nobody has more than an old and a new ztunnel; more are somebody's mistake.
MAX_SESSIONS = 4
# One accept in this time, so that a ztunnel that dies at once does not keep the agent busy (Istio's agent: 5 per s).
ACCEPT_PAUSE_S = 0.2
AWAY = "no ztunnel is connected"

OnLost = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pod that ztunnel shall serve; the descriptor stays the pod's worker's."""

    add: zds.Add
    netns: int


class SessionEnded(Exception):
    """A ztunnel is gone; the text says how."""


class Ztunnels:
    """Owns the socket and all sessions; an async context manager that starts to listen at `open`."""

    def __init__(self, path: Path, deadline_s: float = zds.REQUEST_TIMEOUT_S) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._wanted: dict[str, Wanted] = {}
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._sessions: list[_Session] = []
        self._background = Background()
        self._listener: socket.socket | None = None
        self.on_lost: OnLost = lambda uid, reason: None
        self._watching: list[tuple[bool, asyncio.Future[None]]] = []  # who waits for a ztunnel, or for none

    async def __aenter__(self) -> "Ztunnels":
        await self._background.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)
        await self._background.__aexit__(None, None, None)

    @property
    def connected(self) -> int:
        """Ztunnels that have said hello."""
        return len(self._sessions)

    @property
    def is_ready(self) -> bool:
        """Whether the latest ztunnel has got its whole snapshot."""
        return bool(self._sessions) and self._sessions[-1].protocol.is_live

    def until(self, *, present: bool) -> asyncio.Future[None]:
        """Done when there is a ztunnel, or with False when there is none."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watching.append((present, future))
        self._tell_watchers()
        return future

    def open(self) -> None:
        """Listen. Every pod must have been wanted before: a ztunnel drops those that its snapshot does not name."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(MAX_SESSIONS)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._background.start(self._accept(listener), "zds accept")

    async def failed(self) -> None:
        """Raise when the server itself fails."""
        await self._background.failed()

    def want(self, wanted: Wanted) -> None:
        """Serve a pod from now on, in every snapshot to come."""
        self._wanted[wanted.add.uid] = wanted

    def listen(self, wanted: Wanted) -> asyncio.Future[str]:
        """Serve a pod and hear how it went: "" or ztunnel's error. Waits for a ztunnel as long as there is none."""
        uid = wanted.add.uid
        self.want(wanted)
        waiting = self._waiting.get(uid)
        if waiting is None or waiting.done():
            waiting = self._waiting[uid] = asyncio.get_running_loop().create_future()
        if self._sessions:
            self._sessions[-1].ask(uid, wanted)
        return waiting

    def forget(self, uid: str) -> asyncio.Future[None]:
        """No longer serve a pod; done when each ztunnel has answered or is gone."""
        self._wanted.pop(uid, None)
        if (waiting := self._waiting.pop(uid, None)) is not None:
            waiting.cancel()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = len(self._sessions)

        def answered(_: asyncio.Future[str]) -> None:
            nonlocal left
            left -= 1
            if left <= 0 and not done.done():
                done.set_result(None)

        for session in self._sessions:
            session.ask(uid, zds.Del(uid)).add_done_callback(answered)
        if not self._sessions:
            done.set_result(None)
        return done

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the peer is gone again
                log.warning("cannot accept a ztunnel: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            self._background.run_once(self._serve(connected), "zds session")
            await asyncio.sleep(ACCEPT_PAUSE_S)

    async def _serve(self, connected: socket.socket) -> None:
        packets = PacketSocket(connected, zds.MAX_PACKET_BYTES)
        session = _Session(packets, self._deadline_s, self._answered)
        try:
            await session.greet()
            if len(self._sessions) >= MAX_SESSIONS:
                raise SessionEnded(f"{MAX_SESSIONS} ztunnels are connected already")
            self._sessions.append(session)
            self._tell_watchers()
            log.info("ztunnel connected, %d pods to hand over", len(self._wanted))
            for uid, wanted in self._wanted.items():
                session.ask(uid, wanted)
            await session.run()
        except (SessionEnded, zds.RemoteProtocolError, PacketCut, OSError) as error:
            log.warning("ztunnel disconnected: %s", error)
        finally:
            packets.close()
            self._left(session)

    def _left(self, session: "_Session") -> None:
        if session not in self._sessions:
            return
        was_latest = self._sessions[-1] is session
        self._sessions.remove(session)
        self._tell_watchers()
        session.abandon()
        if not was_latest:
            return
        for uid, wanted in list(self._wanted.items()):
            waiting = self._waiting.get(uid)
            if waiting is None or waiting.done():
                self.on_lost(uid, AWAY if not self._sessions else "the latest ztunnel has left, asking the one before")
            elif self._sessions:
                self._sessions[-1].ask(uid, wanted)

    def _tell_watchers(self) -> None:
        is_present = bool(self._sessions)
        for wanted, future in self._watching:
            if wanted is is_present and not future.done():
                future.set_result(None)
        self._watching = [(wanted, future) for wanted, future in self._watching if not future.done()]

    def _answered(self, session: "_Session", uid: str, error: str) -> None:
        """A ztunnel has acknowledged an Add; only the latest one's word counts."""
        if not self._sessions or self._sessions[-1] is not session or uid not in self._wanted:
            return
        waiting = self._waiting.pop(uid, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(error)
        elif error:
            self.on_lost(uid, error)


Answered = Callable[["_Session", str, str], None]


class _Session:
    """One connected ztunnel: sends the last word about each pod, one request at a time."""

    def __init__(self, packets: PacketSocket, deadline_s: float, answered: Answered) -> None:
        self.protocol = zds.Connection(zds.Role.AGENT)
        self._packets = packets
        self._deadline_s = deadline_s
        self._answered = answered
        self._pending: dict[str, tuple[Wanted | zds.Del, asyncio.Future[str]]] = {}
        self._asked: asyncio.Future[str] | None = None
        self._wake = asyncio.Event()

    def ask(self, uid: str, request: Wanted | zds.Del) -> asyncio.Future[str]:
        """Send this when its turn comes, instead of what waits for the same pod; resolves to ztunnel's error."""
        if uid in self._pending:
            self._pending.pop(uid)[1].cancel()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pending[uid] = (request, answer)
        self._wake.set()
        return answer

    def abandon(self) -> None:
        """Nobody will answer any more."""
        for _, answer in self._pending.values():
            answer.cancel()
        self._pending.clear()

    async def greet(self) -> None:
        """Hear hello; raises SessionEnded, RemoteProtocolError, OSError."""
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._receive()
        except TimeoutError:
            raise SessionEnded(f"no hello within {self._deadline_s} s") from None

    async def run(self) -> None:
        """Serve until the ztunnel goes away; always raises."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(), name="zds read")
                group.create_task(self._write(), name="zds write")
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            assert isinstance(message, zds.Ack), "after hello, a ztunnel can send nothing else"
            assert self._asked is not None, "the protocol lets no answer through that nobody asked for"
            if not self._asked.done():  # it is when the deadline has just passed
                self._asked.set_result(message.error)

    async def _write(self) -> None:
        while True:
            if self._pending:
                uid = next(iter(self._pending))
                await self._send(uid, *self._pending.pop(uid))
            elif not self.protocol.is_live:
                await self._exchange(zds.SnapshotSent(), ())
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _send(self, uid: str, request: Wanted | zds.Del, answer: asyncio.Future[str]) -> None:
        message = request if isinstance(request, zds.Del) else request.add
        try:
            error = await self._exchange(message, () if isinstance(request, zds.Del) else (request.netns,))
        except zds.LocalProtocolError as fault:  # a name that does not fit: this pod's fault, not the session's
            error = str(fault)
        except BaseException:
            answer.cancel()
            raise
        if not answer.done():
            answer.set_result(error)
        if isinstance(request, Wanted):
            self._answered(self, uid, error)

    async def _exchange(self, message: zds.Request, descriptors: tuple[int, ...]) -> str:
        packet = self.protocol.send(message)
        self._asked = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._packets.send(packet, descriptors)
                return await self._asked
        except TimeoutError:
            raise SessionEnded(f"{type(message).__name__} was not answered within {self._deadline_s} s") from None

    async def _receive(self) -> zds.Message:
        packet = await self._packets.receive()
        if packet is None:
            raise SessionEnded("closed by ztunnel")
        try:
            return self.protocol.receive(packet.data, packet.descriptors)
        finally:
            packet.close()  # a ztunnel has no descriptors to give
