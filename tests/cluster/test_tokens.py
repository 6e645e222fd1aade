"""Callers with service account tokens, judged by a real API server."""

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from controller.app import Controller
from controller.serve import tokens
from mesh.kube.resources import PODS, SECRETS
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest
from mesh.xds import ADDRESS_TYPE
from tests.cluster.alone import ApiAlone
from tests.cluster.callers import Caller, config
from tests.cluster.mesh_objects import Objects, with_times
from tests.unit.controller.nodes import Manifests, pod, running

pytestmark = pytest.mark.slow

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


class Stage:
    """A controller, a node with its component's pod, and a pod of each of two nodes."""

    def __init__(self, server: ApiAlone, controller: Controller, objects: Objects, node: str, roots: bytes) -> None:
        self.server, self.controller, self.objects, self.node, self.roots = server, controller, objects, node, roots
        self.pod = ("", "")

    async def token(self, account: str = "culvert-node", audience: str = "culvert-ca") -> str:
        return await self.objects.token(account, audience, self.pod if account == "culvert-node" else None)

    def caller(self, token: str) -> Caller:
        return Caller(self.controller, self.roots, token)

    def identity(self, account: str, namespace: str = "shop") -> str:
        return f"spiffe://cluster.local/ns/{namespace}/sa/{account}"

    def counted(self, metric: str, reason: str) -> bool:
        line = f'culvert_controller_{metric}_total{{reason="{reason}"}}'
        return line.encode() in self.controller.metrics.render()


@contextlib.asynccontextmanager
async def stage(server: ApiAlone, tmp_path: Path) -> AsyncIterator[Stage]:
    objects = await Objects.make(server.api())
    node = await objects.node()
    await objects.account("culvert-node")
    await objects.account("web")
    settings = config(tmp_path, server, objects.namespace)
    manifests = Manifests(tmp_path / "manifests")
    manifests.write("pods", pod("web", "10.0.0.1", node), pod("far", "10.0.0.2", "node-b"))
    async with running(settings) as controller:
        secret = await objects.api.get(SECRETS, "culvert-ca", objects.namespace)
        one = Stage(server, controller, objects, node, base64.b64decode(secret["data"]["root-cert.pem"]))
        one.pod = ("culvert-node-x", await objects.pod("culvert-node-x", "culvert-node", node))
        yield one


def test_a_node_component_gets_the_identities_of_its_node_and_no_other(
    api_server: ApiAlone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            caller = one.caller(await one.token())
            assert await caller.ask(one.identity("web")) is grpc.StatusCode.OK
            assert await caller.ask(one.identity("far")) is DENIED
            assert one.counted("certificates_refused", "not_on_node")
            assert f"certificate refused to {one.node} (not_on_node): no pod with {one.identity('far')}" in caplog.text
            async with caller.stream() as call:
                answer = await call.read()
                assert {resource.name for resource in answer.resources} >= {"Kubernetes//Pod/shop/web"}

    asyncio.run(test())


def test_a_workload_gets_its_own_identity_and_nothing_else(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            caller = one.caller(await one.token("web"))
            own = one.identity("web", one.objects.namespace)
            assert await caller.ask() is grpc.StatusCode.OK
            assert await caller.ask(own) is grpc.StatusCode.OK
            assert await caller.ask(one.identity("web")) is DENIED
            assert one.counted("certificates_refused", "not_own")
            async with caller.stream() as call:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is DENIED

    asyncio.run(test())


def test_tokens_that_are_not_good(api_server: ApiAlone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            web = one.identity("web")
            good = await one.token()
            now = int(time.time())
            for bad in (
                await one.token(audience="api"),
                with_times(api_server, good, exp=now - 60, iat=now - 700, nbf=now - 700),
                good[:-6] + "AAAAAA",
                "a.b.c",
            ):
                assert await one.caller(bad).ask(web) is UNAUTHENTICATED
            assert one.counted("callers_refused", "token")
            assert caplog.text.count("refused (token)") == 4
            for why in ("service account token has expired", 'invalid for the target audiences ["culvert-ca"]'):
                assert why in caplog.text
            assert good[-20:] not in caplog.text, "what was shown is in nobody's log"
            assert await one.caller(good).ask(web) is grpc.StatusCode.OK

    asyncio.run(test())


def test_a_token_ends_with_its_pod(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            token = await one.token()
            await one.objects.api.delete(PODS, one.pod[0], one.objects.namespace)
            assert await one.caller(token).ask(one.identity("web")) is UNAUTHENTICATED

    asyncio.run(test())


def test_a_token_that_is_bound_to_no_pod_makes_no_node(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            token = await one.objects.token("culvert-node")
            assert await one.caller(token).ask(one.identity("web")) is UNAUTHENTICATED
            assert one.counted("callers_refused", "node_unknown")

    asyncio.run(test())


def test_while_the_api_server_is_away_nobody_is_refused_and_who_was_known_stays_so(
    api_server: ApiAlone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "GOOD_FOR_S", 0.0)

    async def test() -> None:
        async with stage(api_server, tmp_path) as one:
            known, fresh = await one.token(), with_times(api_server, await one.token(), iat=int(time.time()) - 1)
            caller = one.caller(known)
            async with caller.stream() as call:
                first = await call.read()
                await call.write(DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce=first.nonce))
                await asyncio.to_thread(api_server.stop_api)
                try:
                    assert await one.caller(fresh).ask(one.identity("web")) is grpc.StatusCode.UNAVAILABLE
                    assert await caller.ask(one.identity("web")) is grpc.StatusCode.OK
                    async with one.caller(known).stream() as again:  # a ztunnel that was started anew
                        assert (await asyncio.wait_for(again.read(), 10)).resources
                    Manifests(tmp_path / "manifests").write("new", pod("new", "10.0.0.9", one.node))
                    second = await asyncio.wait_for(call.read(), 10)
                    assert [resource.name for resource in second.resources] == ["Kubernetes//Pod/shop/new"]
                finally:
                    await asyncio.to_thread(api_server.start_api)
            assert await one.caller(fresh).ask(one.identity("web")) is grpc.StatusCode.OK

    asyncio.run(test())
