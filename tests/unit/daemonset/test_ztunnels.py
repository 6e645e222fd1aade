import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from daemonset.ztunnels import AWAY, Wanted, Ztunnels
from mesh import zds
from mesh.seqpacket import PacketSocket
from mesh.zds import Ack, Add, Del, Hello, Role, SnapshotSent
from tests.unit.daemonset.fakes import null_fd, open_descriptors

DEADLINE_S = 0.2


def wanted(name: str, fd: int) -> Wanted:
    return Wanted(Add(f"uid-{name}", "shop", name, "sa"), fd)


class FakeZtunnel:
    """A ztunnel that answers every request and remembers it, or does as it is told."""

    def __init__(self, packets: PacketSocket) -> None:
        self.packets = packets
        self.protocol = zds.Connection(Role.ZTUNNEL)
        self.errors: dict[str, str] = {}
        self.inodes: dict[str, int] = {}

    async def hear(self) -> zds.Message:
        async with asyncio.timeout(2):
            packet = await self.packets.receive()
        assert packet is not None, "closed by the agent"
        message = self.protocol.receive(packet.data, packet.descriptors)
        if isinstance(message, Add):
            self.inodes[message.uid] = os.fstat(packet.descriptors[0]).st_ino
        packet.close()
        return message

    async def answer(self, error: str = "") -> None:
        await self.packets.send(self.protocol.send(Ack(error)))

    async def take(self, count: int) -> list[zds.Message]:
        """Hear and answer so many requests."""
        heard = []
        for _ in range(count):
            message = await self.hear()
            heard.append(message)
            await self.answer(self.errors.get(getattr(message, "uid", ""), ""))
        return heard


class Stage:
    """An agent's server and whoever connects to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost: list[tuple[str, str]] = []
        self.ztunnels = Ztunnels(path, DEADLINE_S)
        self.ztunnels.on_lost = lambda uid, reason: self.lost.append((uid, reason))
        self.fd = null_fd()
        self._open: list[PacketSocket] = []

    async def connect(self, *, hello: bool = True) -> FakeZtunnel:
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, str(self.path))
        packets = PacketSocket(raw, zds.MAX_PACKET_BYTES)
        self._open.append(packets)
        ztunnel = FakeZtunnel(packets)
        if hello:
            await packets.send(ztunnel.protocol.send(Hello()))
        return ztunnel

    def close(self) -> None:
        for packets in self._open:
            packets.close()
        os.close(self.fd)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(2):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def stage(*names: str) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="cvb-") as directory:
        made = Stage(Path(directory) / "z.sock")
        async with made.ztunnels:
            for name in names:
                made.ztunnels.want(wanted(name, made.fd))
            made.ztunnels.open()
            try:
                yield made
            finally:
                made.close()


def play(body: Callable[[Stage], Awaitable[None]], *names: str) -> None:
    async def run() -> None:
        async with stage(*names) as made:
            await body(made)

    before = open_descriptors()
    asyncio.run(run())
    assert open_descriptors() == before


def test_the_socket_is_for_root_only_and_gone_at_the_end() -> None:
    paths: list[Path] = []

    async def body(made: Stage) -> None:
        paths.append(made.path)
        assert made.path.stat().st_mode & 0o777 == 0o600

    play(body)
    assert not paths[0].exists()


def test_a_socket_file_that_a_dead_agent_left_is_replaced() -> None:
    async def body(made: Stage) -> None:
        again = Ztunnels(made.path, DEADLINE_S)
        async with again:
            again.open()
            ztunnel = await made.connect()
            assert await ztunnel.take(1) == [SnapshotSent()]

    play(body, "a")


def test_the_snapshot_names_every_pod_with_its_namespace_then_ends() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        heard = await ztunnel.take(3)
        assert heard == [wanted("a", 0).add, wanted("b", 0).add, SnapshotSent()]
        assert set(ztunnel.inodes.values()) == {os.fstat(made.fd).st_ino}
        await made.until(lambda: made.ztunnels.is_ready)

    play(body, "a", "b")


def test_one_request_at_a_time() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        await ztunnel.hear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DEADLINE_S / 2):
                await ztunnel.packets.receive()

    play(body, "a", "b")


def test_a_pod_added_before_any_ztunnel_is_acknowledged_by_the_first() -> None:
    async def body(made: Stage) -> None:
        added = made.ztunnels.listen(wanted("a", made.fd))
        ztunnel = await made.connect()
        await ztunnel.take(2)
        assert await added == ""

    play(body)


def test_ztunnels_error_reaches_who_asked_and_a_later_try_is_sent_anew() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        await ztunnel.take(1)
        ztunnel.errors["uid-a"] = "no room"
        added = made.ztunnels.listen(wanted("a", made.fd))
        await ztunnel.take(1)
        assert await added == "no room"
        ztunnel.errors.clear()
        again = made.ztunnels.listen(wanted("a", made.fd))
        assert await ztunnel.take(1) == [wanted("a", 0).add]
        assert await again == ""

    play(body)


def test_an_error_in_the_snapshot_that_nobody_waits_for_is_told_as_a_loss() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        ztunnel.errors["uid-a"] = "no room"
        await ztunnel.take(2)
        await made.until(lambda: bool(made.lost))
        assert made.lost == [("uid-a", "no room")]

    play(body, "a")


def test_a_ztunnel_that_dies_is_told_once_per_pod_and_the_next_gets_the_whole_snapshot() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        await ztunnel.take(3)
        ztunnel.packets.close()
        await made.until(lambda: len(made.lost) == 2)
        assert made.lost == [("uid-a", AWAY), ("uid-b", AWAY)]
        again = [made.ztunnels.listen(wanted(name, made.fd)) for name in "ab"]
        ztunnel = await made.connect()
        assert len(await ztunnel.take(3)) == 3
        assert await asyncio.gather(*again) == ["", ""]

    play(body, "a", "b")


def test_a_pod_asked_for_when_ztunnel_dies_is_answered_by_the_next() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        await ztunnel.take(1)
        added = made.ztunnels.listen(wanted("a", made.fd))
        await ztunnel.hear()
        ztunnel.packets.close()
        await made.until(lambda: made.ztunnels.connected == 0)
        assert not added.done()
        await (await made.connect()).take(2)
        assert await added == ""
        assert made.lost == []

    play(body)


def test_with_two_ztunnels_adds_go_to_the_latest_and_deletes_to_both() -> None:
    async def body(made: Stage) -> None:
        old = await made.connect()
        await old.take(2)
        new = await made.connect()
        await new.take(2)
        await made.until(lambda: made.ztunnels.connected == 2)
        added = made.ztunnels.listen(wanted("b", made.fd))
        assert await new.take(1) == [wanted("b", 0).add]
        assert await added == ""
        forgotten = made.ztunnels.forget("uid-a")
        assert await new.take(1) == [Del("uid-a")]
        await asyncio.sleep(0)
        assert not forgotten.done()
        assert await old.take(1) == [Del("uid-a")]
        await forgotten

    play(body, "a")


def test_what_the_old_one_answers_late_does_not_count() -> None:
    async def body(made: Stage) -> None:
        made.ztunnels._deadline_s = 5.0
        old = await made.connect()
        await old.take(1)
        added = made.ztunnels.listen(wanted("b", made.fd))
        assert await old.hear() == wanted("b", 0).add
        new = await made.connect()
        assert await new.hear() == wanted("b", 0).add
        await old.answer("no room")
        await asyncio.sleep(0.02)
        assert not added.done()
        await new.answer()
        assert await added == ""
        assert made.lost == []

    play(body)


def test_when_the_latest_leaves_the_one_before_is_asked_again() -> None:
    async def body(made: Stage) -> None:
        old = await made.connect()
        await old.take(2)
        new = await made.connect()
        await new.take(2)
        await made.until(lambda: made.ztunnels.connected == 2)
        pending = made.ztunnels.listen(wanted("b", made.fd))
        await new.hear()
        new.packets.close()
        assert await old.take(1) == [wanted("b", 0).add]
        assert await pending == ""
        assert [uid for uid, _ in made.lost] == ["uid-a"]

    play(body, "a")


def test_when_the_old_one_leaves_nobody_notices() -> None:
    async def body(made: Stage) -> None:
        old = await made.connect()
        await old.take(2)
        new = await made.connect()
        await new.take(2)
        await made.until(lambda: made.ztunnels.connected == 2)
        old.packets.close()
        await made.until(lambda: made.ztunnels.connected == 1)
        assert made.lost == []

    play(body, "a")


def test_a_pod_that_is_forgotten_before_its_turn_is_never_added() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        assert await ztunnel.hear() == wanted("a", 0).add  # in hand; b waits for its turn
        forgotten = made.ztunnels.forget("uid-b")
        await ztunnel.answer()
        assert await ztunnel.take(2) == [Del("uid-b"), SnapshotSent()]
        await forgotten

    play(body, "a", "b")


def test_forgetting_ends_at_once_without_a_ztunnel_and_when_it_dies() -> None:
    async def body(made: Stage) -> None:
        await made.ztunnels.forget("uid-a")
        ztunnel = await made.connect()
        await ztunnel.take(1)
        forgotten = made.ztunnels.forget("uid-a")
        await ztunnel.hear()
        ztunnel.packets.close()
        async with asyncio.timeout(1):
            await forgotten

    play(body, "a")


@pytest.mark.parametrize("packet", [b"", b"\xff", b"\x08\x02"])
def test_garbage_instead_of_hello_ends_that_connection_only(packet: bytes) -> None:
    async def body(made: Stage) -> None:
        stranger = await made.connect(hello=False)
        if packet:
            await stranger.packets.send(packet)
        else:
            stranger.packets.close()
        ztunnel = await made.connect()
        await ztunnel.take(2)
        assert made.ztunnels.connected == 1
        if packet:
            assert await stranger.packets.receive() is None

    play(body, "a")


def test_descriptors_that_a_ztunnel_sends_are_closed_with_its_connection() -> None:
    async def body(made: Stage) -> None:
        stranger = await made.connect(hello=False)
        await stranger.packets.send(zds.encode(Hello()), [made.fd])
        assert await stranger.packets.receive() is None

    play(body)


@pytest.mark.parametrize("says_hello", [False, True])
def test_a_silent_ztunnel_is_given_up_after_the_deadline(says_hello: bool) -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect(hello=says_hello)
        if says_hello:
            await ztunnel.hear()
        async with asyncio.timeout(DEADLINE_S * 4):
            assert await ztunnel.packets.receive() is None
        assert made.ztunnels.connected == 0

    play(body, "a")


def test_names_too_long_for_a_packet_are_that_pods_fault_alone() -> None:
    async def body(made: Stage) -> None:
        ztunnel = await made.connect()
        await ztunnel.take(1)
        long = Wanted(Add("u" * 2000, "shop", "long", "sa"), made.fd)
        assert "1024" in await made.ztunnels.listen(long)
        added = made.ztunnels.listen(wanted("b", made.fd))
        await ztunnel.take(1)
        assert await added == ""

    play(body)


def test_who_waits_for_a_ztunnel_or_for_none_hears_of_it() -> None:
    async def body(made: Stage) -> None:
        absent, present = made.ztunnels.until(present=False), made.ztunnels.until(present=True)
        assert absent.done()
        assert not present.done()
        ztunnel = await made.connect()
        await made.until(present.done)
        gone = made.ztunnels.until(present=False)
        assert not gone.done()
        ztunnel.packets.close()
        await made.until(gone.done)

    play(body)
