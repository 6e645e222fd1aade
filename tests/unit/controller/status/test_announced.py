"""Whether what is written now has reached every node, asked of a whole controller."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from controller.app import Controller
from mesh.wire.agent_pb2 import CapturedPod, CaptureReport
from tests.unit.controller.nodes import Manifests, config, node, pod, policy, running

pytestmark = pytest.mark.slow

WEB = "Kubernetes//Pod/shop/web"
CLIENT = "Kubernetes//Pod/shop/client"
WAIT_S = 3.0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def rows(controller: Controller, wait_s: float = WAIT_S) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in (await controller.announced.view(wait_s))["pods"]}


def test_answer_comes_after_every_node_holds_what_was_just_written(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with (
            running(config(tmp_path)) as controller,
            node(controller, tmp_path) as one,
            node(controller, tmp_path, "node-b") as two,
            one.streaming(),
            two.streaming(),
        ):
            await one.until(lambda: one.subscriber.is_synced)
            await two.until(lambda: two.subscriber.is_synced)
            for number in range(10):
                manifests.write(f"p{number}", pod(f"p{number}", f"10.0.1.{number}"))
                view = await controller.announced.view(WAIT_S)
                assert view["source_read"] is True
                assert view["nodes"] == {"node-a": True, "node-b": True}
                assert all(f"Kubernetes//Pod/shop/p{number}" in held for held in (one.held, two.held))

    run(test)


def test_file_in_a_new_folder_does_not_wait_for_the_next_look(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller:
            await controller.announced.view(WAIT_S)
            for number in range(20):
                folder = manifests.folder / f"new{number}"
                folder.mkdir()
                Manifests(folder).write("x", pod(f"x{number}", "10.0.2.1"))
                assert f"x{number}" in await rows(controller)

    run(test)


def test_node_that_does_not_answer_is_named_after_the_time_that_was_asked_for(
    tmp_path: Path, manifests: Manifests
) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path, "node-b") as mute:
            call = mute.raw_stream()
            for request in mute.subscriber.open():
                await call.write(request.SerializeToString())
            await call.read()
            started = time.monotonic()
            view = await controller.announced.view(0.3)
            assert 0.25 < time.monotonic() - started < 2
            assert view["nodes"] == {"node-b": False}
            call.cancel()

    run(test)


def test_node_that_has_only_connected_has_taken_nothing(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one:
            call = one.raw_stream()
            await call.write(next(iter(one.subscriber.open())).SerializeToString())  # one of two types
            await call.read()
            assert (await controller.announced.view(0.3))["nodes"] == {"node-a": False}
            call.cancel()

    run(test)


def test_pods_are_shown_with_what_is_asked_and_what_is_captured(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with (
            running(config(tmp_path, istio_labels=True)) as controller,
            node(controller, tmp_path) as one,
        ):
            manifests.write("client", pod("client", "10.0.0.2"))
            metadata = {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}
            manifests.write("shop", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
            before = await rows(controller)
            assert [(before[name]["asked"], before[name]["captured"]) for name in ("web", "client")] == [
                (True, False),
                (True, False),
            ]
            call = one.report_captures()
            captured = CapturedPod(namespace="shop", name="web", uid=before["web"]["uid"])
            await call.write(CaptureReport(node="node-a", generation=1, pods=[captured]))
            await call.read()
            after = await rows(controller)
            assert (after["web"]["captured"], after["client"]["captured"]) == (True, False)
            call.cancel()

    run(test)


def test_what_is_refused_is_named_with_the_reason(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller:
            manifests.write("bad", policy("bad", {"action": "MAYBE"}))
            (refused,) = (await controller.announced.view(WAIT_S))["refused"]
            assert refused["object"] == "AuthorizationPolicy shop/bad"
            assert "MAYBE" in refused["why"]

    run(test)
