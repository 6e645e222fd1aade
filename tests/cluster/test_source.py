"""The source `kubernetes` on a real API server: the same world as from files, through all that befalls a server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.index.objects import Change, Kind, Object
from controller.sources.documents import read_manifest
from controller.sources.kubernetes import KubernetesSource
from mesh.aio import Background
from mesh.kube import resources
from mesh.kube.api import Api, Selection
from mesh.kube.follow import Pace
from tests.cluster.alone import ApiAlone
from tests.cluster.objects import RESOURCES, define, namespace, pod, put, undefine, until
from tests.unit.controller.nodes import policy
from tests.unit.controller.worlds import World, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DENY = {"action": "DENY", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b"]}}]}]}


@contextlib.asynccontextmanager
async def feeding(server: ApiAlone) -> AsyncIterator[tuple[Api, World, KubernetesSource]]:
    world = World()
    api = server.api()
    source = KubernetesSource(api, Pace(longest_backoff_s=1.0, page_size=3), patience_s=0.5)
    async with Background() as tasks:
        tasks.start(source.run(world), "source")
        await until(lambda: bool(world.batches), "the first batch")
        yield api, world, source


def service(name: str, ns: str, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    metadata = {"name": name, "namespace": ns}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports, **spec}}


def piece(name: str, ns: str, service_name: str, *addresses: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": service_name}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": ns, "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in addresses],
    }


def world_of(ns: str) -> list[dict[str, Any]]:
    """A bit of everything."""
    labels = {"topology.kubernetes.io/zone": "z1"}
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7f", "uid": "u1", "controller": True}
    return [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a", "labels": labels}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": ns}},
        pod("web-1", "10.1.0.1", ns, labels={"app": "web"}, ownerReferences=[owner]),
        pod("web-2", "10.1.0.2", ns, labels={"app": "web"}, annotations={"culvert.io/capture": "enabled"}),
        pod("db-1", "10.1.0.3", ns, labels={"app": "db"}),
        service("web", ns, selector={"app": "web"}),
        service("all", ns, selector={"app": "web"}, clusterIP="None"),
        service("outside", ns),
        piece("outside-1", ns, "outside", "192.0.2.1"),
        service("named", ns, type="ExternalName", externalName="example.com"),
        policy("deny", DENY, ns=ns),
        policy("strict", {"mtls": {"mode": "STRICT"}}, "PeerAuthentication", ns=ns),
    ]


async def as_files(api: Api) -> dict[tuple[Kind, str], Object]:
    """What the source `files` makes of what the API server has."""
    items = []
    for kind, resource in RESOURCES.items():
        async for page in api.pages(Selection(resource)):
            items += [{"apiVersion": resource.api_version, "kind": kind, **item} for item in page]
    manifest = read_manifest(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), "all.json")
    assert manifest.faults == []
    return manifest.objects


def test_the_same_objects_make_the_same_snapshot_as_from_files(api_server: ApiAlone) -> None:
    async def test() -> None:
        api = api_server.api()
        await define(api)
        await namespace(api, "same", culvert__io="x")
        for document in world_of("same"):
            await put(api, document)
        async with feeding(api_server) as (api, world, source):
            expected = await as_files(api)
            assert world.objects == expected
            everything = [Change(kind, key, item) for (kind, key), item in world.objects.items()]
            from_files = [Change(kind, key, item) for (kind, key), item in expected.items()]
            assert snapshot(everything) == snapshot(from_files)
            assert world.faults == ()
            count = len(world.batches)
            await source.catch_up()
            assert len(world.batches) == count

    asyncio.run(test())


def test_changes_and_removals_arrive(api_server: ApiAlone) -> None:
    async def test() -> None:
        async with feeding(api_server) as (api, world, _):
            await namespace(api, "moves")
            for number in range(1, 11):
                await put(api, pod(f"p{number}", f"10.2.0.{number}", "moves"))
            await until(lambda: len(world.keys(Kind.POD, "moves")) == 10, "ten pods")
            await put(api, pod("p1", "10.2.9.9", "moves"))
            address = bytes([10, 2, 9, 9])
            await until(
                lambda: getattr(world.objects[Kind.POD, "moves/p1"], "addresses", ()) == (address,), "the new address"
            )
            await api.delete(resources.PODS, "p2", "moves", grace_s=0)
            await put(api, pod("p3", "", "moves") | {"status": {"phase": "Succeeded", "podIPs": None, "podIP": None}})
            await until(lambda: "p2" not in world.keys(Kind.POD, "moves"), "the deletion")
            await until(lambda: getattr(world.objects[Kind.POD, "moves/p3"], "is_terminal", False), "the end of p3")

    asyncio.run(test())


def test_a_malformed_policy_is_named_and_its_last_good_version_stays(api_server: ApiAlone) -> None:
    async def test() -> None:
        async with feeding(api_server) as (api, world, _):
            await define(api)
            await namespace(api, "broken")
            await put(api, policy("p", DENY, ns="broken"))
            await until(lambda: world.keys(Kind.AUTHORIZATION_POLICY, "broken") == {"p"}, "the policy")
            good = world.objects[Kind.AUTHORIZATION_POLICY, "broken/p"]
            misspelt = {"action": "DENY", "rules": [{"from": [{"source": {"principal": ["x"]}}]}]}
            await put(api, policy("p", misspelt, ns="broken"))
            await until(lambda: bool(world.faults), "the fault")
            (fault,) = world.faults
            assert fault.object == "AuthorizationPolicy broken/p"
            assert fault.field == "spec.rules[0].from[0].source.principal"
            assert world.objects[Kind.AUTHORIZATION_POLICY, "broken/p"] is good
            await api.delete(resources.AUTHORIZATION_POLICIES, "p", "broken")
            await until(lambda: not world.faults, "the end of the fault")

    asyncio.run(test())


def test_definitions_that_come_later_and_go_with_their_objects(own_server: ApiAlone) -> None:
    async def test() -> None:
        async with feeding(own_server) as (api, world, source):
            assert world.faults == ()
            for _ in range(2):
                await define(api)
                await put(api, policy("p", DENY, ns="default"))
                await until(lambda: world.keys(Kind.AUTHORIZATION_POLICY, "default") == {"p"}, "the policy")
                assert (Kind.AUTHORIZATION_POLICY, "default/p") in source.written
                await undefine(api)
                await until(lambda: not world.keys(Kind.AUTHORIZATION_POLICY, "default"), "the policy's end")
            await until(lambda: not world.faults, "no faults")
            assert source.written == {}

    asyncio.run(test())


def test_a_namespace_is_deleted_with_everything_in_it(own_server: ApiAlone) -> None:
    async def test() -> None:
        own_server.start_controllers("namespace-controller")
        async with feeding(own_server) as (api, world, _):
            await define(api)
            await namespace(api, "doomed")
            for document in world_of("doomed")[1:]:
                await put(api, document)
            await until(lambda: len([key for _, key in world.objects if key.startswith("doomed/")]) == 11, "all of it")
            await api.delete(resources.NAMESPACES, "doomed")
            for name in ("web-1", "web-2", "db-1"):  # no kubelet ends them
                await api.delete(resources.PODS, name, "doomed", grace_s=0)
            await until(lambda: not [1 for _, key in world.objects if key.startswith("doomed")], "its end")

    asyncio.run(test())


def test_a_server_that_is_away_takes_nothing_and_what_happened_meanwhile_is_made_up_for(own_server: ApiAlone) -> None:
    async def test() -> None:
        async with feeding(own_server) as (api, world, source):
            await put(api, pod("p1", "10.3.0.1", "default"))
            await until(lambda: getattr(world.objects.get((Kind.POD, "default/p1")), "is_ready", False), "the pod")
            before = dict(world.objects)
            await asyncio.to_thread(own_server.stop_api)
            await until(lambda: len(source.away) == 7 and len(world.faults) == 7, "all kinds are said to be away")
            assert world.objects == before
            await asyncio.to_thread(own_server.start_api)
            await put(api, pod("p2", "10.3.0.2", "default"))
            await until(lambda: (Kind.POD, "default/p2") in world.objects and not world.faults, "all is well")

    asyncio.run(test())


def test_a_storage_restored_to_an_earlier_revision_is_believed(own_server: ApiAlone) -> None:
    async def test() -> None:
        async with feeding(own_server) as (api, world, _):
            await put(api, pod("kept", "10.4.0.1", "default"))
            backup = await asyncio.to_thread(own_server.save)
            for number in range(1, 30):
                await put(api, pod(f"lost-{number}", f"10.4.1.{number}", "default"))
            await until(lambda: (Kind.POD, "default/lost-29") in world.objects, "the pods that will be lost")
            await asyncio.to_thread(own_server.restore, backup)
            await until(lambda: world.keys(Kind.POD, "default") == {"kept"}, "what the backup held")
            await put(api, pod("after", "10.4.0.2", "default"))
            await until(lambda: world.keys(Kind.POD, "default") == {"kept", "after"}, "what came after it")

    asyncio.run(test())
