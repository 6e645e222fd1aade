"""The socket on which culvert-cni asks. One connection per call, each in a task of its own, bounded in number and time.

Owns the socket and each call's descriptor until the gate takes it. Whoever may connect is root on this node: the socket
has mode 0600 in a directory of the agent.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from daemonset.cni import protocol
from daemonset.cni.protocol import Call, Code, Refused
from mesh.aio import Background
from mesh.seqpacket import PacketCut, PacketSocket

log = logging.getLogger(__name__)

# A node starts some hundred pods at once after a reboot; more wait in the backlog, and the runtime tries again.
MAX_CALLS = 256
HEAR_S = 5.0
# Shorter than the plugin's own deadline, so that the pod's event has our sentence and not only a time that is over.
ANSWER_S = 45.0

# Answers a call: returns when the plugin shall succeed, raises Refused otherwise. Duplicates the descriptor it keeps.
Answer = Callable[[Call], Awaitable[None]]


class CniServer:
    """Listens from `__aenter__` on; an async context manager."""

    def __init__(self, path: Path, answer: Answer, deadline_s: float = ANSWER_S) -> None:
        self._path = path
        self._answer = answer
        self._deadline_s = deadline_s
        self._background = Background()
        self._listener: socket.socket | None = None
        self._calls = asyncio.Semaphore(MAX_CALLS)

    async def __aenter__(self) -> "CniServer":
        await self._background.__aenter__()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        temporary = self._path.with_name(self._path.name + ".new")
        try:
            temporary.unlink(missing_ok=True)
            listener.bind(str(temporary))
            temporary.chmod(0o600)
            listener.listen(MAX_CALLS)
            temporary.replace(self._path)  # in one step: pods start while one agent takes over from another
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._background.start(self._accept(listener), "cni accept")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()  # the path stays: an agent after us may have put its own there
        await self._background.__aexit__(None, None, None)

    async def failed(self) -> None:
        """Raise when the server itself fails."""
        await self._background.failed()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._calls.acquire()
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._calls.release()
                log.warning("cannot take a call of the CNI plugin: %s", error)
                await asyncio.sleep(0.2)
                continue
            self._background.run_once(self._serve(connected), "cni call")

    async def _serve(self, connected: socket.socket) -> None:
        packets = PacketSocket(connected, protocol.MAX_CONFIG_BYTES + 1)
        try:
            answer = await self._converse(packets)
            if answer:
                await packets.send(answer)
        except (OSError, PacketCut, TimeoutError) as error:
            log.warning("a call of the CNI plugin ended: %s", error or "nothing was heard")
        finally:
            packets.close()
            self._calls.release()

    async def _converse(self, packets: PacketSocket) -> bytes:
        async with asyncio.timeout(HEAR_S):
            header = await packets.receive()
        if header is None:
            return b""
        try:
            async with asyncio.timeout(HEAR_S):
                config = await packets.receive()
            if config is None:
                return b""
            config.close()
            return await self._judge(header.data, header.descriptors, config.data)
        finally:
            for fd in header.descriptors:
                with contextlib.suppress(OSError):
                    os.close(fd)

    async def _judge(self, header: bytes, descriptors: tuple[int, ...], config: bytes) -> bytes:
        version = "1.0.0"
        try:
            call = protocol.parse(header, descriptors, config)
            version = call.version
            async with asyncio.timeout(self._deadline_s):
                await self._answer(call)
        except Refused as refused:
            log.warning("CNI: %s", refused)
            return protocol.failure(refused, version)
        except TimeoutError:
            return protocol.failure(Refused(Code.TRY_AGAIN_LATER, "Culvert's node agent found no end of it"), version)
        return protocol.success(call)
