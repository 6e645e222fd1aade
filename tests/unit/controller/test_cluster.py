"""The controller's parts on an API server, joined: a whole controller against a scripted one."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

from controller.app import Controller
from controller.config import AuthorityConfig, Config, ElectionConfig, ServeConfig, SourceConfig
from tests.cluster.kube.api_server import free_ports
from tests.support.waiting import until
from tests.unit.controller.fake_api import FakeApi, Request, refusal
from tests.unit.controller.nodes import fetch, node, pod, policy, running

WEB = "Kubernetes//Pod/shop/web"
DENY: dict[str, Any] = {"action": "DENY", "rules": [{}]}


def settings(tmp_path: Path, name: str, *, elect: bool = False) -> Config:
    return Config(
        state=tmp_path / name,
        drain_s=0.2,
        source=SourceConfig(source="kubernetes", kubeconfig=tmp_path / "kubeconfig"),
        election=ElectionConfig(elect=elect),
        serve=ServeConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0"),
    )


def make_fake() -> FakeApi:
    fake = FakeApi()
    fake.define("AuthorizationPolicy", "PeerAuthentication")
    fake.put(pod("web", "10.0.0.1"), policy("deny", DENY))
    return fake


def statuses(fake: FakeApi) -> list[Request]:
    return [request for request in fake.requests if request.path.endswith("/status")]


def test_nodes_are_served_and_authors_are_told(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake()
        async with (
            fake.serving(tmp_path),
            running(settings(tmp_path, "one")) as controller,
            node(controller, tmp_path) as one,
            one.streaming(),
        ):
            await one.until(lambda: WEB in one.held and "shop/deny" in one.held)
            await until(lambda: len(statuses(fake)) == 1)
            fake.put(pod("client", "10.0.0.2"))
            await one.until(lambda: "Kubernetes//Pod/shop/client" in one.held)
            assert b"culvert_controller_leader 1.0" in controller.metrics.render()
            assert b"culvert_controller_source_away 0.0" in controller.metrics.render()
            view = await controller.announced.view(4.0)
            assert view["source_read"]
            assert view["nodes"] == {"node-a": True}

    asyncio.run(test())


def test_an_api_server_that_is_away_changes_nothing_for_nodes_and_is_counted(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake()
        async with (
            fake.serving(tmp_path),
            running(settings(tmp_path, "one")) as controller,
            node(controller, tmp_path) as one,
            one.streaming(),
        ):
            await one.until(lambda: one.subscriber.is_synced)
            held = dict(one.held)
            await fake.stop()
            await until(lambda: b"culvert_controller_source_away 9.0" in controller.metrics.render())
            assert one.held == held
            await fake.start()
            fake.put(pod("client", "10.0.0.2"))
            await one.until(lambda: "Kubernetes//Pod/shop/client" in one.held)

    asyncio.run(test())


def test_a_controller_that_waits_for_the_api_server_is_alive_and_not_ready(tmp_path: Path) -> None:
    """A kubelet that took it for dead would let it wait for minutes after the API server is back."""

    async def test() -> None:
        fake = make_fake()
        fake.script = lambda request: refusal(503) if "secrets" in request.path else None
        async with fake.serving(tmp_path):
            (monitor,) = free_ports(1)
            plain = settings(tmp_path, "one")
            serve = dataclasses.replace(plain.serve, metrics_listen=f"127.0.0.1:{monitor}")
            controller = Controller(dataclasses.replace(plain, serve=serve, authority=AuthorityConfig(ca="kubernetes")))
            stop = asyncio.Event()
            task = asyncio.get_running_loop().create_task(controller.run(stop))
            await until(lambda: any("secrets" in request.path for request in fake.requests))
            assert (await fetch(monitor, "/healthz/live"))[0] == 200
            assert (await fetch(monitor, "/healthz/ready"))[0] == 503
            stop.set()
            await task

    asyncio.run(test())


def test_of_two_controllers_both_serve_and_one_writes(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake()
        async with (
            fake.serving(tmp_path),
            running(settings(tmp_path, "one", elect=True)) as first,
            running(settings(tmp_path, "two", elect=True)) as second,
            node(first, tmp_path, "node-a") as one,
            node(second, tmp_path, "node-b") as two,
            one.streaming(),
            two.streaming(),
        ):
            await one.until(lambda: WEB in one.held)
            await two.until(lambda: WEB in two.held)
            await until(lambda: bool(statuses(fake)))
            await asyncio.sleep(0.1)
            assert len(statuses(fake)) == 1
            leading = [b"culvert_controller_leader 1.0" in each.metrics.render() for each in (first, second)]
            assert sorted(leading) == [False, True]

    asyncio.run(test())
