"""What a lab's network shows to whom, without a namespace."""

import asyncio
import threading
from pathlib import Path

import pytest

from lab import namespaces, network
from lab.network import Network
from lab.paths import LabPaths


class NoRecord:
    def claim_netns(self, *parts: str) -> str:
        return "-".join(("test", *parts))

    def claim_key(self, node: str) -> None:
        pass

    def name(self, target: str, netns: str) -> None:
        pass


class Wires:
    """Stands for the kernel; making a node lasts until `go_on`."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ruled: list[str] = []

    def make_node(self, fabric: Path, netns: Path, *_: object) -> None:
        self.begun.set()
        assert self.go_on.wait(5)

    def route_to(self, *_: object) -> None:
        pass

    def load_rules(self, netns: Path, text: str) -> None:
        self.ruled.append(netns.name)


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Wires:
    wires = Wires()
    monkeypatch.setattr(network, "wire", wires)
    monkeypatch.setattr(namespaces, "create", namespaces.path_of)
    monkeypatch.setattr(network, "write_text", lambda *_: None)
    return wires


def test_services_are_not_shown_to_a_node_that_is_still_being_made(wires: Wires) -> None:
    async def scenario() -> None:
        net = Network(LabPaths("test"), NoRecord())  # type: ignore[arg-type]
        adding = asyncio.get_running_loop().create_task(net.add_node("a"))
        await asyncio.to_thread(wires.begun.wait, 5)
        await net.publish(lambda: ([], []))
        assert (wires.ruled, net.local_nodes) == ([], [])
        wires.go_on.set()
        node = await adding
        await net.publish(lambda: ([], []))
        assert (wires.ruled, net.local_nodes) == (["test-a"], [node])

    asyncio.run(scenario())
