"""The whole controller over real TLS and gRPC on loopback."""

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.__main__ import main
from controller.app import Controller
from controller.ca import keys
from controller.serve.ads import Stream
from mesh.wire.agent_pb2 import CaptureAck, CapturedPod, CaptureReport
from mesh.wire.authorization_pb2 import Authorization
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from mesh.wire.workload_pb2 import Address, TunnelProtocol
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, DELTA_METHOD
from tests.unit.controller.nodes import (
    FakeNode,
    Manifests,
    channel_credentials,
    config,
    credentials,
    fetch,
    node,
    pod,
    policy,
    raw_stream,
    running,
    until,
)

WEB = "Kubernetes//Pod/shop/web"
CLIENT = "Kubernetes//Pod/shop/client"

pytestmark = pytest.mark.slow

DENY_ALL = {"action": "DENY", "rules": [{}]}


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def workload(one: FakeNode, name: str) -> Any:
    return Address.FromString(one.held[name]).workload


def test_a_node_gets_what_is_there_then_changes_then_removals(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one, one.streaming():
            await one.until(lambda: one.subscriber.is_synced)
            assert set(one.held) == {WEB}
            manifests.write("client", pod("client", "10.0.0.2"))
            await one.until(lambda: CLIENT in one.held)
            manifests.write("web", pod("web", "10.0.0.9"))
            await one.until(lambda: workload(one, WEB).addresses[0] == bytes([10, 0, 0, 9]))
            manifests.remove("client")
            await one.until(lambda: CLIENT not in one.held)

    run(test)


def test_reconnect_with_versions_sends_nothing_but_what_changed(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one:
            manifests.write("client", pod("client", "10.0.0.2"))
            async with one.streaming():
                await one.until(lambda: CLIENT in one.held and one.subscriber.is_synced)
            one.updates.clear()
            async with one.streaming():
                await one.until(lambda: len(one.updates) == 2)
            assert all(not update.changed and not update.removed for update in one.updates)
            before = controller.index.pod("shop/web")
            manifests.remove("client")
            manifests.write("web", pod("web", "10.0.0.9"))
            await until(lambda: controller.index.pod("shop/client") is None)
            await until(lambda: controller.index.pod("shop/web") != before)
            one.updates.clear()
            async with one.streaming():
                await one.until(lambda: CLIENT not in one.held)
            assert {name for update in one.updates for name in update.removed} == {CLIENT}

    run(test)


def test_a_restarted_controller_sends_nothing_to_a_node_that_has_it_all(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as first, node(first, tmp_path) as one, one.streaming():
            await one.until(lambda: one.subscriber.is_synced and WEB in one.held)
        async with running(config(tmp_path)) as second, node(second, tmp_path) as again:
            again.subscriber = one.subscriber
            async with again.streaming():
                await again.until(lambda: len(again.updates) == 2)
            assert all(not update.changed and not update.removed for update in again.updates)

    run(test)


def test_a_stream_that_had_its_time_is_opened_anew_and_nothing_is_sent_again(
    tmp_path: Path, manifests: Manifests
) -> None:
    async def test() -> None:
        settings = config(tmp_path)
        settings = dataclasses.replace(settings, serve=dataclasses.replace(settings.serve, stream_life_s=0.5))
        async with running(settings) as controller, node(controller, tmp_path) as one:
            method: Any = one.channel.stream_stream(
                DELTA_METHOD,
                request_serializer=DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=DeltaDiscoveryResponse.FromString,
            )
            for turn in range(2):
                call = method()
                for request in one.subscriber.open():
                    await call.write(request)
                sent = 0
                async for response in call:
                    update = one.subscriber.receive(response)
                    sent += len(update.changed)
                    await call.write(one.subscriber.answer(update))
                assert await call.code() is grpc.StatusCode.OK
                assert bool(sent) is (turn == 0)

    run(test)


def test_a_refused_resource_is_counted_and_the_rest_goes_on(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one:
            one.refuse = lambda name: "no such thing" if name == WEB else None
            async with one.streaming():
                await one.until(lambda: one.subscriber.is_synced)
                manifests.write("client", pod("client", "10.0.0.2"))
                await one.until(lambda: CLIENT in one.held)
            assert WEB not in one.held
            assert b'xds_nacks_total{type="address"} 1.0' in controller.metrics.render()

    run(test)


def test_a_policy_arrives_before_the_workload_that_refers_to_it_and_leaves_after(
    tmp_path: Path, manifests: Manifests
) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one, one.streaming():
            await one.until(lambda: one.subscriber.is_synced)
            one.updates.clear()
            manifests.write("strict", policy("p", {"mtls": {"mode": "STRICT"}}, "PeerAuthentication"))
            strict = "culvert-system/istio_converted_static_strict"
            await one.until(lambda: strict in workload(one, WEB).authorization_policies)
            assert [update.type_url for update in one.updates] == [AUTHORIZATION_TYPE, ADDRESS_TYPE]
            one.updates.clear()
            manifests.remove("strict")
            await one.until(lambda: strict not in one.held)
            assert [update.type_url for update in one.updates] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]

    run(test)


def test_hbone_is_announced_while_captured_and_acknowledged_after_every_node_heard(
    tmp_path: Path, manifests: Manifests
) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one, one.streaming():
            await one.until(lambda: WEB in one.held)
            assert workload(one, WEB).tunnel_protocol == TunnelProtocol.NONE
            agent = one.report_captures()
            web = CapturedPod(namespace="shop", name="web", uid="uid-web")
            await agent.write(CaptureReport(node="node-a", generation=1, pods=[web]))
            assert (await agent.read()).generation == 1
            assert workload(one, WEB).tunnel_protocol == TunnelProtocol.HBONE
            agent.cancel()  # a dead agent takes nothing back: its programs still capture
            manifests.write("client", pod("client", "10.0.0.2"))
            await one.until(lambda: CLIENT in one.held)
            assert workload(one, WEB).tunnel_protocol == TunnelProtocol.HBONE
            agent = one.report_captures()
            await agent.write(CaptureReport(node="node-a", generation=1))
            await agent.read()
            assert workload(one, WEB).tunnel_protocol == TunnelProtocol.NONE

    run(test)


def test_a_node_that_hangs_delays_acknowledgements_but_no_announcement(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with (
            running(config(tmp_path)) as controller,
            node(controller, tmp_path) as one,
            one.streaming(),
            node(controller, tmp_path, "node-b") as hanging,
        ):
            call = hanging.raw_stream()  # asks, and answers nothing
            await call.write(hanging.subscriber.open()[0].SerializeToString())
            await until(lambda: len(controller.hub.streams) == 2)
            await one.until(lambda: WEB in one.held)
            agent = one.report_captures()
            web = CapturedPod(namespace="shop", name="web", uid="uid-web")
            await agent.write(CaptureReport(node="node-a", generation=1, pods=[web]))
            await one.until(lambda: workload(one, WEB).tunnel_protocol == TunnelProtocol.HBONE)
            await agent.write(CaptureReport(node="node-a", generation=2))
            await one.until(lambda: workload(one, WEB).tunnel_protocol == TunnelProtocol.NONE)
            call.cancel()  # the node is gone: nobody is left to wait for
            generations = [(await agent.read()).generation]
            while generations[-1] != 2:
                generations.append((await agent.read()).generation)
            assert generations == sorted(set(generations))

    run(test)


def test_captures_outlive_a_restart_and_end_with_the_pod(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        settings = config(tmp_path)
        async with running(settings) as controller, node(controller, tmp_path) as one:
            agent = one.report_captures()
            web = CapturedPod(namespace="shop", name="web", uid="uid-web")
            await agent.write(CaptureReport(node="node-a", generation=1, pods=[web]))
            await agent.read()
        async with running(settings) as controller, node(controller, tmp_path) as one, one.streaming():
            await one.until(lambda: WEB in one.held)
            assert workload(one, WEB).tunnel_protocol == TunnelProtocol.HBONE
            manifests.remove("web")
            await one.until(lambda: WEB not in one.held)
            manifests.write("web", pod("web", "10.0.0.1"))
            await one.until(lambda: WEB in one.held)
            assert workload(one, WEB).tunnel_protocol == TunnelProtocol.NONE

    run(test)


def test_an_agent_cannot_report_for_another_node(
    tmp_path: Path, manifests: Manifests, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path, "node-b") as one:
            agent = one.report_captures()
            web = CapturedPod(namespace="shop", name="web", uid="uid-web")
            await agent.write(CaptureReport(node="node-a", generation=1, pods=[web]))
            with pytest.raises(grpc.aio.AioRpcError, match="node-a"):
                assert isinstance(await agent.read(), CaptureAck), "the stream ended without an error"
            assert controller.captures.view() == {}
            counted = 'culvert_controller_callers_refused_total{reason="another_node"} 1.0'
            assert counted.encode() in controller.metrics.render()
            assert "agent of node node-b: a report for node 'node-a' from node 'node-b'" in caplog.text

    run(test)


async def _refusal(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """How a stream ends that says nothing: a write that meets the refusal would be the client's own error."""
    call = raw_stream(channel)
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.read()
    code: grpc.StatusCode = await call.code()
    return code


def test_callers_without_a_node_certificate_are_refused(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller:
            target = f"127.0.0.1:{controller.port}"
            roots = controller.authority.issuer.roots_pem
            async with grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots)) as channel:
                assert await _refusal(channel) == grpc.StatusCode.UNAVAILABLE
            key = keys.new_key()
            names = keys.uris(["spiffe://cluster.local/ns/culvert-system/sa/culvert-node"])
            issued = controller.authority.sign(key.public_key(), names, controller.authority._lifetimes.default)
            leaf = issued.pem_chain[0].encode()
            proof = grpc.ssl_channel_credentials(roots, keys.key_pem(key), leaf)
            async with grpc.aio.secure_channel(target, proof) as channel:
                assert await _refusal(channel) == grpc.StatusCode.UNAUTHENTICATED

    run(test)


def test_garbage_on_a_stream_ends_that_stream_only(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one, one.streaming():
            call = one.raw_stream()
            await call.write(b"\xff\xff\xff")
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
            await one.until(lambda: WEB in one.held)

    run(test)


def test_a_malformed_manifest_is_listed_and_its_last_good_version_stays(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one, one.streaming():
            manifests.write("p", policy("p", DENY_ALL))
            await one.until(lambda: "shop/p" in one.held)
            manifests.write("p", policy("p", {"action": "DENY", "rules": [{"form": []}]}), pod("client", "10.0.0.2"))
            await one.until(lambda: CLIENT in one.held)
            assert len(Authorization.FromString(one.held["shop/p"]).rules) == 1
            (fault,) = json.loads((tmp_path / "state" / "status.json").read_text())["faults"]
            assert fault["object"] == "AuthorizationPolicy shop/p"
            assert fault["field"] == "spec.rules[0].form"
            assert b"source_errors 1.0" in controller.metrics.render()

    run(test)


def test_the_credential_command_makes_a_working_credential(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        settings = config(tmp_path)
        out = tmp_path / "out"
        assert main(["credential", "--state", str(settings.state), "--node", "node-x", "--out", str(out)]) == 0
        assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
        async with running(settings) as controller:
            proof = channel_credentials(out)
            async with grpc.aio.secure_channel(f"127.0.0.1:{controller.port}", proof) as channel:
                one = FakeNode(channel, "node-x")
                async with one.streaming():
                    await one.until(lambda: WEB in one.held)

    run(test)


def test_shutdown_ends_streams_at_once_and_says_so(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        patient = dataclasses.replace(config(tmp_path), drain_s=30.0)
        async with asyncio.timeout(10), contextlib.AsyncExitStack() as stack:
            controller = await stack.enter_async_context(running(patient))
            proof = credentials(controller, tmp_path / "proof", "node-a")
            channel = grpc.aio.secure_channel(f"127.0.0.1:{controller.port}", proof)
            one = FakeNode(channel, "node-a")
            call, agent = one.raw_stream(), one.report_captures()
            await agent.write(CaptureReport(node="node-a", generation=1))
            await agent.read()
            await call.write(one.subscriber.open()[0].SerializeToString())
            await call.read()
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        assert await agent.code() == grpc.StatusCode.UNAVAILABLE
        await channel.close(None)

    run(test)


def test_a_node_that_never_answers_gets_a_bounded_amount(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        async with running(config(tmp_path)) as controller, node(controller, tmp_path) as one:
            call = one.raw_stream()
            await call.write(one.subscriber.open()[0].SerializeToString())
            await until(lambda: bool(controller.hub.streams))
            for number in range(12):
                manifests.write("client", pod("client", f"10.0.1.{number + 1}"))
                await until(lambda: pod_address(controller) == bytes([10, 0, 1, number + 1]))  # noqa: B023
                await asyncio.sleep(0.02)
            (stream,) = controller.hub.streams
            assert isinstance(stream, Stream)
            assert stream.view()["types"]["address"]["unanswered"] == 4  # type: ignore[index]
            call.cancel()
            await until(lambda: not controller.hub.streams)

    run(test)


def pod_address(controller: Controller) -> bytes | None:
    known = controller.index.pod("shop/client")
    return known.addresses[0] if known else None


def test_pages_show_what_the_controller_believes(tmp_path: Path, manifests: Manifests) -> None:
    async def test() -> None:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            monitor, debug = first.getsockname()[1], second.getsockname()[1]
        settings = config(tmp_path)
        serve = dataclasses.replace(
            settings.serve, metrics_listen=f"127.0.0.1:{monitor}", debug_listen=f"127.0.0.1:{debug}"
        )
        settings = dataclasses.replace(settings, serve=serve)
        async with running(settings) as controller, node(controller, tmp_path) as one, one.streaming():
            await one.until(lambda: one.subscriber.is_synced)
            assert (await fetch(monitor, "/healthz/ready"))[0] == 200
            assert (await fetch(monitor, "/healthz/live"))[0] == 200
            assert b"culvert_controller_xds_streams 1.0" in (await fetch(monitor, "/metrics"))[1]
            assert (await fetch(monitor, "/debug/config"))[0] == 404
            (resource,) = json.loads((await fetch(debug, "/debug/resources?name=web"))[1])
            assert resource["content"]["workload"]["addresses"] == ["10.0.0.1"]
            (stream,) = json.loads((await fetch(debug, "/debug/streams"))[1])
            assert stream["node"] == "node-a"
            assert json.loads((await fetch(debug, "/debug/config"))[1])["mesh"]["cluster_id"] == "Kubernetes"
            assert json.loads((await fetch(debug, "/debug/status"))[1]) == {"policies": [], "faults": []}
            assert json.loads((await fetch(debug, "/debug/captures"))[1]) == {}

    run(test)
