"""The home over a real loopback connection; the lab behind it is a few objects."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from lab.manifests import Ref
from lab.nodes import Node
from lab.plan import NodePlan
from lab.span import home as home_module
from lab.span.home import Facts, Home
from lab.span.joined import Door, JoinRefused
from lab.span.link import LinkLost
from lab.span.machines import Machines

TOKEN = b"t" * 32
FILES = {"key.pem": "k", "cert.pem": "c", "roots.pem": "r"}


class Objects:
    """A cluster of named objects."""

    def __init__(self):
        self.items = {Ref("Namespace", "", "shop"): {"kind": "Namespace", "metadata": {"name": "shop"}}}

    def watch(self, changed):
        self.changed = changed

    def view(self, node):
        return dict(self.items)


class Nodes:
    def __init__(self):
        self.nodes = {
            "node-a": Node("t", "node-a", NodePlan(1), "ns"),
            "node-b": Node("t", "node-b", NodePlan(2), "", is_local=False),
        }


class Peers:
    def __init__(self):
        self.now = []

    async def reach(self, peers):
        self.now = list(peers)


class Stage:
    def __init__(self, port, home, objects, machines, peers):
        self.port, self.home, self.objects, self.machines, self.peers = port, home, objects, machines, peers

    def door(self, node="node-b"):
        return Door("127.0.0.1", self.port, TOKEN, node)


@asynccontextmanager
async def served():
    objects, machines, peers = Objects(), Machines(), Peers()
    home = Home(Facts("t", True, "{}"), TOKEN, objects, Nodes(), machines)

    async def issue(node):
        return FILES

    home.issue = issue
    home.listen("127.0.0.1", 0)
    task = asyncio.get_running_loop().create_task(home.serve(peers), name="home")
    try:
        yield Stage(home._listener.getsockname()[1], home, objects, machines, peers)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run(scene):
    async def play():
        async with asyncio.timeout(10), served() as stage:
            await scene(stage)

    asyncio.run(play())


def test_machine_gets_welcome_credentials_and_then_what_changes():
    async def scene(stage):
        link, welcome = await stage.door().enter()
        assert (welcome.lab, welcome.index) == ("t", 2)
        assert await link.receive() == ("credentials", FILES)
        kind, first = await link.receive()
        assert (kind, first["full"], len(first["put"])) == ("update", True, 1)
        assert first["nodes"] == {"node-a": 1, "node-b": 2}
        assert stage.peers.now == ["127.0.0.1"]

        stage.objects.items = {Ref("Namespace", "", "late"): {"kind": "Namespace", "metadata": {"name": "late"}}}
        stage.objects.changed()
        _, second = await link.receive()
        while not second["put"]:
            _, second = await link.receive()
        assert not second["full"]
        assert [item["metadata"]["name"] for item in second["put"]] == ["late"]
        assert second["gone"] == [["Namespace", "", "shop"]]
        assert second["number"] > first["number"]
        link.close()

    run(scene)


@pytest.mark.parametrize("node", ["node-a", "stranger", ""])
def test_node_that_is_not_for_another_machine_is_refused(node):
    async def scene(stage):
        with pytest.raises(JoinRefused, match="these are: node-b"):
            await stage.door(node).enter()

    run(scene)


def test_second_machine_for_a_node_is_refused_and_the_same_one_is_let_in_again():
    async def scene(stage):
        first = stage.door()
        link, _ = await first.enter()
        with pytest.raises(JoinRefused, match=r"runs on 127\.0\.0\.1 already"):
            await stage.door().enter()
        again, _ = await first.enter()
        with pytest.raises(LinkLost):
            while True:
                await link.receive()
        assert stage.machines.of("node-b").is_joined
        again.close()

    run(scene)


def test_machine_that_goes_is_away_and_reached_no_more():
    async def scene(stage):
        link, _ = await stage.door().enter()
        await link.receive()
        link.close()
        while stage.machines.of("node-b").is_joined or stage.peers.now:
            await asyncio.sleep(0)

    run(scene)


def test_malformed_report_ends_the_conversation():
    async def scene(stage):
        link, _ = await stage.door().enter()
        await link.send("report", {"seen": "x"})
        with pytest.raises(LinkLost):
            while True:
                await link.receive()

    run(scene)


def test_goodbye_is_said_and_nobody_is_waited_for():
    async def scene(stage):
        link, _ = await stage.door().enter()
        await link.receive()
        await stage.home.say_goodbye()
        kind = ""
        while kind != "down":
            kind, _ = await link.receive()
        await stage.machines.of("node-b").confirm_gone("u")
        link.close()

    run(scene)


@pytest.mark.slow
def test_strangers_who_hold_connections_are_bounded_and_do_not_stay(monkeypatch):
    monkeypatch.setattr(home_module, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr("lab.span.link.HANDSHAKE_DEADLINE_S", 0.2)

    async def scene(stage):
        loop = asyncio.get_running_loop()
        silent = [await asyncio.to_thread(socket.create_connection, ("127.0.0.1", stage.port)) for _ in range(2)]
        with await asyncio.to_thread(socket.create_connection, ("127.0.0.1", stage.port)) as third:
            third.setblocking(False)
            assert await loop.sock_recv(third, 1) == b""
        link, _ = await stage.door().enter_within(5.0)
        link.close()
        for sock in silent:
            sock.close()

    run(scene)
