"""Both ends of a hand-over on real sockets: what each sees when the other does its part, or ends at any point."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh import seqpacket
from ztunnel.inpod import handover
from ztunnel.inpod.handover import MAX_PACKET_BYTES, Predecessor, Successors
from ztunnel.inpod.listeners import adopt_listeners


class Pods:
    """Pods of the one before; each has four real listeners."""

    def __init__(self, *uids: str) -> None:
        self.sockets = {uid: [socket.create_server(("127.0.0.1", 0)) for _ in range(4)] for uid in uids}
        self.released: list[str] = []
        self.is_retired: list[bool] = []

    def identities(self) -> Sequence[tuple[str, str]]:
        return [("shop", "web")] if self.sockets else []

    def listening(self, uid: str) -> dict[str, int]:
        return dict(zip(handover.KINDS, (one.fileno() for one in self.sockets.get(uid, ())), strict=False))

    def hand_over(self, uids: Sequence[str]) -> None:
        self.released += uids

    def close(self) -> None:
        for sockets in self.sockets.values():
            for one in sockets:
                one.close()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def pods() -> Iterator[Pods]:
    made = Pods("u1", "u2")
    yield made
    made.close()


def staged(tmp_path: Path, pods: Pods, scene: Callable[[Path], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        path = tmp_path / "handover.sock"
        old = asyncio.get_running_loop().create_task(Successors(path, pods, pods.is_retired.append).run())
        try:
            async with asyncio.timeout(10):
                while not path.exists():
                    await asyncio.sleep(0.01)
                await scene(path)
        finally:
            old.cancel()
            await asyncio.gather(old, return_exceptions=True)

    asyncio.run(run())


async def find(path: Path) -> Predecessor:
    found = await Predecessor.find(path)
    assert found is not None
    return found


async def quiet() -> None:
    await asyncio.sleep(0.05)


def test_the_same_sockets_arrive_and_the_old_one_lets_go_at_the_word_only(tmp_path: Path, pods: Pods) -> None:
    async def scene(path: Path) -> None:
        before = await find(path)
        assert (before.is_able, before.identities) == (True, [("shop", "web")])
        given = await before.take("u1")
        assert list(given) == list(handover.KINDS)
        ours = [os.fstat(fd).st_ino for fd in given.values()]
        assert ours == [os.fstat(one.fileno()).st_ino for one in pods.sockets["u1"]]
        await quiet()
        assert (pods.released, pods.is_retired) == ([], [])
        await before.taken()
        assert (pods.released, pods.is_retired) == (["u1"], [True])
        for fd in given.values():
            os.close(fd)
        before.close()

    staged(tmp_path, pods, scene)


def test_a_pod_that_the_old_one_does_not_have_is_no_fault(tmp_path: Path, pods: Pods) -> None:
    async def scene(path: Path) -> None:
        before = await find(path)
        assert await before.take("unknown") == {}
        before.close()

    staged(tmp_path, pods, scene)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_new_one_that_ends_before_its_word_changes_nothing(tmp_path: Path, pods: Pods, steps: int) -> None:
    async def scene(path: Path) -> None:
        before = await find(path)
        for uid in ("u1", "u2")[:steps]:
            for fd in (await before.take(uid)).values():
                os.close(fd)
        before.close()
        await quiet()
        assert (pods.released, pods.is_retired) == ([], [])
        after = await find(path)  # and the next one is served
        assert after.is_able
        after.close()

    staged(tmp_path, pods, scene)


def test_when_the_new_one_ends_the_old_one_hears_it_and_hands_over_again(tmp_path: Path, pods: Pods) -> None:
    async def scene(path: Path) -> None:
        before = await find(path)
        await before.taken()
        before.close()
        await quiet()
        assert pods.is_retired == [True, False]
        again = await find(path)
        assert again.is_able
        again.close()

    staged(tmp_path, pods, scene)


@pytest.mark.parametrize("moment", ["take", "taken", "gone"])
def test_an_old_one_that_ends_at_any_point_holds_nobody_up(tmp_path: Path, pods: Pods, moment: str) -> None:
    async def run() -> None:
        path = tmp_path / "handover.sock"
        old = asyncio.get_running_loop().create_task(Successors(path, pods, pods.is_retired.append).run())
        await asyncio.sleep(0.05)
        before = await find(path)
        given = await before.take("u1")
        old.cancel()
        await asyncio.gather(old, return_exceptions=True)
        async with asyncio.timeout(5):
            if moment == "take":
                assert await before.take("u2") == {}
            elif moment == "taken":
                await before.taken()
            await before.gone()
        for fd in given.values():
            os.fstat(fd)  # what was given is ours
            os.close(fd)
        before.close()

    asyncio.run(run())


def test_nobody_is_there(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "handover.sock"
        assert await Predecessor.find(path) is None
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(path))
        assert await Predecessor.find(path) is None

    asyncio.run(run())


@pytest.mark.parametrize("answer", [b'{"hello": 2}', b"", b"garbage", b"[1]", b'{"hello": 1, "identities": [3]}', None])
def test_an_old_one_of_another_kind_is_waited_for(
    tmp_path: Path, answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "ANSWER_S", 0.2)

    async def run() -> None:
        path = tmp_path / "handover.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen(1)
            found = asyncio.get_running_loop().create_task(Predecessor.find(path))
            peer, _ = await asyncio.to_thread(listener.accept)
            with contextlib.suppress(OSError):
                if answer:
                    peer.send(answer)
                elif answer is not None:
                    peer.close()
            before = await found
            assert before is not None and not before.is_able
            assert await before.take("u1") == {}
            await before.taken()
            peer.close()
            await asyncio.wait_for(before.gone(), 2)
            before.close()

    asyncio.run(run())


def test_a_new_one_of_another_version_gets_an_answer_and_nothing_else(tmp_path: Path, pods: Pods) -> None:
    async def scene(path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as new:
            new.settimeout(3)
            new.connect(str(path))
            seqpacket.send(new, b'{"hello": 2}')
            packet = await asyncio.to_thread(seqpacket.receive, new, MAX_PACKET_BYTES)
            assert packet is not None and b'"hello": 1' in packet.data
            seqpacket.send(new, b'{"taken": true}')
            await quiet()
        await quiet()
        assert (pods.released, pods.is_retired) == ([], [])

    staged(tmp_path, pods, scene)


@pytest.mark.parametrize("packet", [b"x", b"[]", b"{}", b'{"hello": 1}{', b'{"hello": 1, "take": 3}'])
def test_strangers_do_no_harm_and_leak_nothing(tmp_path: Path, pods: Pods, packet: bytes) -> None:
    async def scene(path: Path) -> None:
        before = descriptors()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(str(path))
            seqpacket.send(stranger, packet, [0])
            with contextlib.suppress(OSError):
                seqpacket.send(stranger, b'{"take": ["u1"]}', [0, 0])
                seqpacket.send(stranger, b'{"what": 1}', [0])
            await quiet()
        await quiet()
        assert descriptors() <= before  # fewer, where an earlier test's are collected meanwhile
        assert pods.released == []

    staged(tmp_path, pods, scene)


def test_what_does_not_listen_or_is_not_whole_is_not_adopted() -> None:
    before = descriptors()
    netns = os.open("/proc/self/ns/net", os.O_RDONLY)

    def given(*broken: str) -> dict[str, int]:
        made = {}
        for kind in handover.KINDS:
            one = socket.socket() if kind in broken else socket.create_server(("127.0.0.1", 0))
            made[kind] = one.detach()
        return made

    assert adopt_listeners(netns, given("hbone")) is None
    missing = given()
    os.close(missing.pop("inbound"))
    assert adopt_listeners(netns, missing) is None
    no_socket = given()
    os.close(no_socket["inbound"])
    no_socket["inbound"] = os.open("/dev/null", os.O_RDONLY)
    assert adopt_listeners(netns, no_socket) is None
    listeners = adopt_listeners(netns, given())
    assert listeners is not None
    assert len(list(listeners)) == 4
    listeners.close()
    os.close(netns)
    assert descriptors() == before
