"""The order in which a ztunnel comes into service: two of them on real sockets, with agent and certificates made up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh.identity import Identity
from ztunnel.inpod import takeover
from ztunnel.inpod.handover import Predecessor, Successors
from ztunnel.inpod.takeover import Takeover


class Part:
    """Agent link, pods and identities of one ztunnel; `log` has what was done to them, in order."""

    def __init__(self, identities: Sequence[tuple[str, str]] = ()) -> None:
        self.log: list[str] = []
        self.snapshot = asyncio.Event()
        self.inherit: Any = None
        self.own = list(identities)
        self.pending: list[Identity] = []
        self.has_ca = True
        self.synced = asyncio.Event()

    async def run(self) -> None:
        self.log.append("agent")
        await asyncio.Event().wait()

    def hold(self, *, is_held: bool) -> None:
        self.log.append(f"hold {is_held}")

    def acquire(self, identity: Identity) -> None:
        self.log.append(f"acquire {identity.service_account}")
        if not self.has_ca:
            self.pending.append(identity)

    def release(self, identity: Identity) -> None:
        self.log.append(f"release {identity.service_account}")

    def identities(self) -> Sequence[tuple[str, str]]:
        return self.own

    def listening(self, uid: str) -> dict[str, int]:
        return {}

    def hand_over(self, uids: Sequence[str]) -> None:
        self.log.append("handed over")

    def retired(self, is_retired: bool) -> None:
        self.log.append(f"retired {is_retired}")


def made(path: Path, part: Part) -> Takeover:
    def identity_of(namespace: str, account: str) -> Identity:
        return Identity("cluster.local", namespace, account)

    return Takeover(path, part, part, part, identity_of, part.retired)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(path: Path, part: Part) -> AsyncIterator[Takeover]:
    """A ztunnel that has looked and goes its way."""
    one = made(path, part)
    await one.look()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(one.run(part.synced)), loop.create_task(one.serve_pods(part.synced))]
    try:
        await asyncio.sleep(0.05)
        yield one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        one.close()


async def turn() -> None:
    await asyncio.sleep(0.08)


def test_alone_it_serves_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        part = Part()
        async with running(tmp_path / "h.sock", part) as one:
            assert one.is_done
            assert part.log == ["agent"]

    asyncio.run(run())


def test_configuration_and_certificates_come_before_pods_and_pods_before_the_word(tmp_path: Path) -> None:
    async def run() -> None:
        old, new = Part([("shop", "web")]), Part()
        new.has_ca = False
        async with running(tmp_path / "h.sock", old), running(tmp_path / "h.sock", new) as one:
            assert (one.is_done, new.log) == (False, [])
            new.synced.set()
            await turn()
            assert new.log == ["acquire web"]
            new.pending.clear()
            await turn()
            assert new.log == ["acquire web", "agent"]
            assert old.log == ["agent"]
            new.snapshot.set()
            await turn()
            assert one.is_done
            assert new.log[-1] == "release web"
            assert old.log == ["agent", "handed over", "hold True", "retired True"]

    asyncio.run(run())


def test_a_ca_that_does_not_answer_does_not_hold_it_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "CERTIFICATES_S", 0.05)

    async def run() -> None:
        old, new = Part([("shop", "web"), ("Not Valid", "x")]), Part()
        new.has_ca = False
        async with running(tmp_path / "h.sock", old), running(tmp_path / "h.sock", new):
            new.synced.set()
            await turn()
            assert new.log[-1] == "agent"

    asyncio.run(run())


def test_the_old_one_serves_again_when_the_new_one_has_ended(tmp_path: Path) -> None:
    async def run() -> None:
        old, new = Part(), Part()
        async with running(tmp_path / "h.sock", old) as before:
            async with running(tmp_path / "h.sock", new):
                new.synced.set()
                new.snapshot.set()
                await turn()
                assert before.is_retired
            await turn()
            assert not before.is_retired
            assert old.log[-2:] == ["hold False", "retired False"]
            again = await Predecessor.find(tmp_path / "h.sock")
            assert again is not None
            again.close()

    asyncio.run(run())


def test_one_that_hands_nothing_over_is_waited_for_and_then_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Successors, conversation: Any) -> bool:
        await conversation.receive(1)
        await conversation.send({"hello": 99})
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(Successors, "_give", refuse)

    async def run() -> None:
        old, new = Part(), Part()
        async with contextlib.AsyncExitStack() as stack:
            async with running(tmp_path / "h.sock", old):
                one = await stack.enter_async_context(running(tmp_path / "h.sock", new))
                assert (one.stands_by, one.is_done, new.log) == (True, False, [])
            await turn()
            assert (one.stands_by, one.is_done, new.log) == (False, True, ["agent"])

    asyncio.run(run())
