"""What authors read on their objects, written by a whole controller onto a real API server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.app import Controller
from controller.config import Config, ServeConfig, SourceConfig
from controller.index.objects import Kind
from mesh.kube.api import Api, Selection
from mesh.kube.resources import AUTHORIZATION_POLICIES, EVENTS, PEER_AUTHENTICATIONS, PODS, Resource
from mesh.wire.agent_pb2 import CapturedPod, CaptureReport
from mesh.wire.workload_pb2 import Address, TunnelProtocol
from tests.cluster.alone import ApiAlone
from tests.cluster.mesh_objects import fresh
from tests.cluster.objects import define, namespace, pod, put, until
from tests.unit.controller.nodes import node, policy, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DENY = {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}


@contextlib.asynccontextmanager
async def controlling(server: ApiAlone, folder: Path) -> AsyncIterator[tuple[Controller, Api, str]]:
    settings = Config(
        state=folder / "state",
        drain_s=0.2,
        source=SourceConfig(source="kubernetes", kubeconfig=server.kubeconfig),
        serve=ServeConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0"),
    )
    api = server.api()
    await define(api)
    ns = fresh("status")
    await namespace(api, ns)
    async with running(settings) as controller:
        yield controller, api, ns


async def condition(api: Api, resource: Resource, name: str, ns: str) -> dict[str, Any]:
    document = await api.get(resource, name, ns)
    conditions = document.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == "Accepted"), {})


def test_a_policy_says_what_becomes_of_it_in_each_of_its_generations(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with controlling(api_server, tmp_path) as (controller, api, ns):
            await put(api, policy("p", DENY, ns=ns))
            found: dict[str, Any] = {}

            async def observed(generation: int) -> bool:
                nonlocal found
                found = await condition(api, AUTHORIZATION_POLICIES, "p", ns)
                return bool(found.get("observedGeneration") == generation)

            await until(lambda: observed(1), "the first condition")
            assert (found["status"], found["reason"]) == ("True", "Accepted")
            l7 = {"action": "ALLOW", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}
            await put(api, policy("p", l7, ns=ns))
            await until(lambda: observed(2), "the second condition")
            assert (found["status"], found["reason"]) == ("True", "PartiallyEnforced")
            assert "rules[0]" in found["message"]
            assert "methods" in found["message"]
            await put(api, policy("p", {"action": "DENY", "rules": [{"form": [{}]}]}, ns=ns))
            await until(lambda: observed(3), "the third condition")
            assert (found["status"], found["reason"]) == ("False", "Invalid")
            assert "spec.rules[0].form" in found["message"]
            assert "stays in force" in found["message"]
            document = await api.get(AUTHORIZATION_POLICIES, "p", ns)
            assert '"methods":["GET"]' in document["status"]["lastUnderstood"]
            before = controller.index.get(Kind.AUTHORIZATION_POLICY, f"{ns}/p")
            assert before is not None
            async with controlling(api_server, tmp_path / "second") as (second, _, _):
                assert second.index.get(Kind.AUTHORIZATION_POLICY, f"{ns}/p") == before
            managers = {one["manager"] for one in document["metadata"]["managedFields"] if "subresource" in one}
            assert managers == {"culvert-controller"}

    asyncio.run(test())


def test_nothing_is_written_twice(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with controlling(api_server, tmp_path) as (controller, api, ns):
            await put(api, policy("strict", {"mtls": {"mode": "STRICT"}}, "PeerAuthentication", ns=ns))

            async def is_written() -> bool:
                return bool(await condition(api, PEER_AUTHENTICATIONS, "strict", ns))

            await until(is_written, "the condition")
            version = (await api.get(PEER_AUTHENTICATIONS, "strict", ns))["metadata"]["resourceVersion"]
            await controller.source.catch_up()
            await asyncio.sleep(0.3)
            assert (await api.get(PEER_AUTHENTICATIONS, "strict", ns))["metadata"]["resourceVersion"] == version

    asyncio.run(test())


def test_a_pod_that_cannot_be_enrolled_has_an_event_that_says_why(api_server: ApiAlone, tmp_path: Path) -> None:
    async def test() -> None:
        async with controlling(api_server, tmp_path) as (controller, api, ns), node(controller, tmp_path) as one:
            made = [await put(api, pod(name, f"10.5.0.{place}", ns)) for place, name in enumerate(("web", "db"), 1)]
            await put(api, pod("far", "10.5.1.1", ns, node="node-z"))
            await until(lambda: controller.index.pod(f"{ns}/far") is not None, "the pods")
            agent = one.report_captures()
            report = CaptureReport(node="node-a", generation=1)
            for name, uid in (("web", made[0]["metadata"]["uid"]), ("db", "another"), ("far", "")):
                report.refused.add(
                    namespace=ns, name=name, uid=uid, reason="port-in-use", message="it listens on 15008"
                )
            uid = made[0]["metadata"]["uid"]
            report.refused.add(namespace=ns, name="web", uid=uid, reason="port_reserved", message="it wants 15006")
            await agent.write(report)
            await agent.read()

            async def events() -> dict[str, tuple[str, str]]:
                items = (await api.page(Selection(EVENTS, ns))).items
                return {one["reason"]: (one["regarding"]["name"], one["note"]) for one in items}

            async def both() -> bool:
                return len(await events()) == 2

            await until(both, "the events")
            # Nothing about pods of other nodes, nor about earlier ones of the name.
            assert await events() == {
                "NotEnrolled": ("web", "port-in-use: it listens on 15008"),
                "PortReserved": ("web", "port_reserved: it wants 15006"),
            }
            agent.cancel()

    asyncio.run(test())


def test_a_captured_pod_is_known_by_its_annotation_and_better_by_its_agent(
    api_server: ApiAlone, tmp_path: Path
) -> None:
    async def test() -> None:
        async with (
            controlling(api_server, tmp_path) as (controller, api, ns),
            node(controller, tmp_path) as one,
            one.streaming(),
        ):
            name = f"Kubernetes//Pod/{ns}/web"
            marked = {"culvert.io/capture": "enabled"}
            made = await put(api, pod("web", "10.6.0.1", ns, annotations=marked))

            def tunnel() -> TunnelProtocol:
                held = one.held.get(name)
                return Address.FromString(held).workload.tunnel_protocol if held else TunnelProtocol.NONE

            await until(lambda: tunnel() == TunnelProtocol.HBONE, "HBONE by annotation")
            agent = one.report_captures()
            await agent.write(CaptureReport(node="node-a", generation=1))
            await agent.read()
            assert tunnel() == TunnelProtocol.NONE
            captured = CapturedPod(namespace=ns, name="web", uid=made["metadata"]["uid"])
            await agent.write(CaptureReport(node="node-a", generation=2, pods=[captured]))
            await agent.read()
            assert tunnel() == TunnelProtocol.HBONE
            agent.cancel()
            await until(lambda: not controller.captures._connected, "the agent's leaving")
            patch = {"metadata": {"annotations": {"culvert.io/capture": "bypassing"}}}
            await api.merge_patch(PODS, "web", patch, ns)
            await until(lambda: tunnel() == TunnelProtocol.NONE, "plain by a turned annotation")

    asyncio.run(test())
