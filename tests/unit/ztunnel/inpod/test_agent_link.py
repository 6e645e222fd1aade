import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh import seqpacket, zds
from ztunnel.inpod.agent_link import AgentLink
from ztunnel.inpod.listeners import PortTaken
from ztunnel.inpod.pods import PodInfo


class Pods:
    """A pod table that keeps descriptors and refuses by name."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self.refuse: dict[str, Exception] = {}
        self.inherited: Mapping[str, int] | None = None

    def __contains__(self, uid: str) -> bool:
        return uid in self.served

    def is_served(self, uid: str, netns: int) -> bool:
        return uid in self.served

    def add(self, info: PodInfo, netns: int, inherited: Mapping[str, int] | None = None) -> None:
        self.inherited = inherited
        if error := self.refuse.get(info.name):
            os.close(netns)
            raise error
        self.served[info.uid] = netns

    def remove(self, uid: str) -> None:
        os.close(self.served.pop(uid))

    def keep_only(self, uids: set[str]) -> None:
        for uid in set(self.served) - uids:
            self.remove(uid)


class Agent:
    """The agent's end: answers are read one by one."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.peer: socket.socket | None = None

    async def accept(self) -> None:
        self.peer, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        self.peer.settimeout(3)
        packet = await asyncio.to_thread(seqpacket.receive, self.peer, zds.MAX_PACKET_BYTES)
        assert packet is not None
        assert zds.decode_hello(packet.data).version == 1

    async def ask(self, message: zds.Message, *descriptors: int) -> str:
        assert self.peer is not None
        seqpacket.send(self.peer, zds.encode(message), descriptors)
        packet = await asyncio.to_thread(seqpacket.receive, self.peer, zds.MAX_PACKET_BYTES)
        assert packet is not None, "the link hung up"
        return zds.decode_ack(packet.data).error

    async def add(self, uid: str, name: str) -> str:
        netns = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            return await self.ask(zds.Add(uid, "shop", name, ""), netns)
        finally:
            os.close(netns)


def staged(tmp_path: Path, scene: Callable[[Agent, Pods, AgentLink], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            path = tmp_path / "ztunnel.sock"
            listener.bind(str(path))
            listener.listen(1)
            listener.setblocking(False)
            agent, pods = Agent(listener), Pods()
            link = AgentLink(path, pods)  # type: ignore[arg-type]
            task = asyncio.get_running_loop().create_task(link.run())
            try:
                async with asyncio.timeout(10):
                    await agent.accept()
                    await scene(agent, pods, link)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if agent.peer is not None:
                    agent.peer.close()
                for netns in pods.served.values():
                    os.close(netns)

    asyncio.run(run())


def test_pods_come_and_go_by_the_agents_word(tmp_path: Path) -> None:
    async def scene(agent: Agent, pods: Pods, link: AgentLink) -> None:
        assert await agent.add("u1", "web") == ""
        assert not link.snapshot.is_set()
        assert await agent.ask(zds.SnapshotSent()) == ""
        assert link.snapshot.is_set()
        assert await agent.add("u2", "client") == ""
        assert set(pods.served) == {"u1", "u2"}
        assert await agent.ask(zds.Del("u1")) == ""
        assert set(pods.served) == {"u2"}

    staged(tmp_path, scene)


def test_a_pod_that_cannot_be_served_is_named_and_others_go_on(tmp_path: Path) -> None:
    async def scene(agent: Agent, pods: Pods, link: AgentLink) -> None:
        pods.refuse["web"] = PortTaken("port 15008 is taken in the pod")
        answer = await agent.add("u1", "web")
        assert zds.PORT_IN_USE in answer
        assert "15008" in answer
        assert link.failures == {"u1": answer}
        assert await agent.add("u2", "client") == ""
        pods.refuse.clear()
        assert await agent.add("u1", "web") == ""
        assert link.failures == {}

    staged(tmp_path, scene)


def test_after_a_restart_of_the_agent_its_snapshot_corrects_the_table(tmp_path: Path) -> None:
    async def scene(agent: Agent, pods: Pods, link: AgentLink) -> None:
        assert await agent.add("u1", "web") == ""
        assert await agent.add("u2", "client") == ""
        await agent.ask(zds.SnapshotSent())
        assert agent.peer is not None
        agent.peer.close()
        await agent.accept()
        assert set(pods.served) == {"u1", "u2"}, "served while the agent was away"
        assert await agent.ask(zds.Keep("u2")) == ""
        assert "not known" in await agent.ask(zds.Keep("u9"))
        assert await agent.ask(zds.SnapshotSent()) == ""
        assert set(pods.served) == {"u2"}

    staged(tmp_path, scene)


def test_garbage_ends_the_connection_and_leaks_no_descriptor(tmp_path: Path) -> None:
    async def scene(agent: Agent, pods: Pods, link: AgentLink) -> None:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        netns = os.open("/proc/self/ns/net", os.O_RDONLY)
        assert agent.peer is not None
        seqpacket.send(agent.peer, zds.encode(zds.Del("u1")), [netns, netns])
        os.close(netns)
        assert await asyncio.to_thread(seqpacket.receive, agent.peer, zds.MAX_PACKET_BYTES) is None
        agent.peer.close()
        await agent.accept()
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
        assert await agent.add("u1", "web") == ""

    staged(tmp_path, scene)


def test_listeners_are_asked_for_once_per_pod(tmp_path: Path) -> None:
    async def scene(agent: Agent, pods: Pods, link: AgentLink) -> None:
        asked: list[str] = []

        async def inherit(uid: str) -> Mapping[str, int]:
            asked.append(uid)
            return {"inbound": 7}

        link.inherit = inherit
        assert await agent.add("u1", "web") == ""
        assert pods.inherited == {"inbound": 7}
        assert await agent.add("u1", "web") == ""
        assert asked == ["u1"]

    staged(tmp_path, scene)


def test_one_that_is_held_does_not_come_back_until_it_may(tmp_path: Path) -> None:
    async def scene(agent: Agent, pods: Pods, link: AgentLink) -> None:
        link.hold(is_held=True)
        assert agent.peer is not None
        agent.peer.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent.accept(), 0.3)
        link.hold(is_held=False)
        await agent.accept()

    staged(tmp_path, scene)
