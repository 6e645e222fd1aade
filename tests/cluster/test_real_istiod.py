"""Our ztunnel under Istio's own control plane, the binary: what is announced, certificates, changes, reconnects.

Runs where CULVERT_TEST_ISTIOD names the binary. `tests/cluster/kube/modules/istiod` pins it; it is not a part of
`make kube`: `python -m tests.cluster.kube build istiod` builds it from its published Go modules and says where.
"""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from daemonset.cluster.annotations import Annotator
from daemonset.cluster.namespaces import Sandboxes
from daemonset.cluster.source import ClusterSource
from daemonset.lifecycle import Goal, State
from mesh import xds
from mesh.addresses import to_bytes16
from mesh.aio import Background
from mesh.kube.api import Api, Document, Selection
from mesh.kube.resources import AUTHORIZATION_POLICIES, PODS
from mesh.wire.authorization_pb2 import Authorization
from mesh.wire.workload_pb2 import Address
from tests.cluster.istiod import Stage, Ztunnel, roots
from tests.cluster.istiod_shop import NODE, Scene, knows, scene
from tests.cluster.mesh_objects import fresh
from tests.cluster.objects import RESOURCES, until
from tests.support.engine import Engine
from tests.support.pki import Credential
from tests.unit.controller.recorded import translate
from tests.unit.daemonset.cluster.following import following
from ztunnel.decide import Destination, Peer, inbound
from ztunnel.identity import svid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STRICT = {"mtls": {"mode": "STRICT"}}
DENY = {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["9090"]}}]}]}


def lets_in(one: Scene, name: str, identity: str | None, port: int = 8080) -> bool:
    """Whether a pod of the shop is reached by someone with this identity, None: in plain."""
    store = one.ztunnel.store
    number = store.workload_number(one.shop.uid(name))
    workload = store.workload(number)
    assert workload is not None
    peer = Peer(identity, to_bytes16("10.9.9.9"))
    return inbound(store, number, peer, Destination(workload.addresses[0], port)).allow


async def documents(api: Api) -> list[Document]:
    found = []
    for kind, resource in RESOURCES.items():
        if kind != "CustomResourceDefinition":
            async for page in api.pages(Selection(resource)):
                found += [{"apiVersion": resource.api_version, "kind": kind, **item} for item in page]
    return found


def test_what_is_announced_is_what_our_controller_makes_of_the_same_objects(istio: Stage) -> None:
    async def test() -> None:
        async with scene(istio) as one:
            caller = {"source": {"principals": [f"cluster.local/ns/{one.shop.namespace}/sa/client"]}}
            await one.shop.put_policy("deny", DENY)
            await one.shop.put_policy(
                "allow", {"selector": {"matchLabels": {"app": "web"}}, "rules": [{"from": [caller]}]}
            )
            await one.shop.put_policy("strict", STRICT, "PeerAuthentication")
            wanted = translate(await documents(one.api))
            await until(lambda: sorted(one.ztunnel.messages) == sorted(wanted), "everything is announced")
            await until(lambda: _differing(one.ztunnel, wanted) == [], "and as it should be")
            store = one.ztunnel.store
            assert store.policy_faults == {}
            client = store.workload(store.workload_number(one.shop.uid("client")))
            assert client is not None and client.hbone and store.is_local(client)
            assert str(client.identity).endswith(f"/ns/{one.shop.namespace}/sa/client")
            name = f"{one.shop.namespace}/web.{one.shop.namespace}.svc.cluster.local"
            assert len(store.endpoints_of_port(store.service_number(name), 80) or ()) == 2

    asyncio.run(test())


def _differing(ztunnel: Ztunnel, wanted: Mapping[str, Address | Authorization]) -> list[str]:
    return [name for name, message in wanted.items() if type(message).FromString(ztunnel.messages[name]) != message]


def test_a_certificate_is_issued_for_a_pod_of_the_node_and_for_nobody_else(istio: Stage) -> None:
    async def test() -> None:
        async with scene(istio) as one:
            ztunnel, space = one.ztunnel, one.shop.namespace
            client, elsewhere = ztunnel.certificate(space, "client"), ztunnel.certificate(space, "web")
            await until(lambda: str(client) in ztunnel.held.by_identity, "the certificate")
            chain, _, trusted = ztunnel.held.by_identity[str(client)]
            given = await roots(one.api, space)
            assert svid.read_roots(trusted) == svid.read_roots(given)
            assert svid.leads_to(chain, given)
            held, fault = ztunnel.identities.certificates()[client]
            assert held is not None and fault == ""
            lifetime = held.not_after - held.not_before
            assert timedelta(hours=23) < lifetime < timedelta(hours=25)
            with Engine() as engine:
                assert not engine.put_identity(str(client), Credential(*ztunnel.held.by_identity[str(client)]))
            await until(lambda: ztunnel.identities.certificates()[elsewhere][1], "the refusal")
            assert "UNAUTHENTICATED" in ztunnel.identities.certificates()[elsewhere][1]
            assert str(elsewhere) not in ztunnel.held.by_identity

    asyncio.run(test())


def test_changed_pods_and_policies_arrive(istio: Stage) -> None:
    async def test() -> None:
        async with scene(istio) as one:
            store, shop = one.ztunnel.store, one.shop
            friend = f"spiffe://cluster.local/ns/{shop.namespace}/sa/client"
            assert lets_in(one, "web-1", None)
            await shop.put_policy("strict", STRICT, "PeerAuthentication")
            await until(lambda: not lets_in(one, "web-1", None), "STRICT")
            assert lets_in(one, "web-1", friend)
            await shop.put_policy("deny", DENY)
            await until(lambda: not lets_in(one, "web-1", friend, 9090), "the port is denied")
            assert lets_in(one, "web-1", friend)
            await shop.put_policy("deny", {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["8080"]}}]}]})
            await until(lambda: not lets_in(one, "web-1", friend), "the other port is denied")
            assert lets_in(one, "web-1", friend, 9090)
            await one.api.delete(AUTHORIZATION_POLICIES, "deny", shop.namespace)
            await until(lambda: lets_in(one, "web-1", friend), "nothing is denied")

            address = await shop.pod("web-3", NODE, app="web")
            await until(lambda: store.workload_at(to_bytes16(address)), "the new pod")
            await one.api.delete(PODS, "web-1", shop.namespace, grace_s=0)
            await until(lambda: not store.workload_number(shop.uid("web-1")), "the old pod is gone")
            name = f"{shop.namespace}/web.{shop.namespace}.svc.cluster.local"
            assert len(store.endpoints_of_port(store.service_number(name), 80) or ()) == 2
            assert one.ztunnel.ads.terminations == dict.fromkeys(one.ztunnel.ads.terminations, 0)

    asyncio.run(test())


def test_what_our_agent_writes_on_a_pod_is_what_istio_announces(istio: Stage) -> None:
    async def test() -> None:
        async with scene(istio) as one:
            shop, node = one.shop, fresh("node")
            await shop.pod("late", node, captured=False)

            def tunnels() -> bool:
                workload = one.ztunnel.store.workload(one.ztunnel.store.workload_number(shop.uid("late")))
                return workload is not None and workload.hbone

            await until(lambda: knows(one.ztunnel, shop, "late") and not tunnels(), "it is outside")
            source = ClusterSource(one.api, node, sandboxes := Sandboxes())
            async with following(source, []), Background() as tasks:
                await until(lambda: bool(source.records), "the pod")
                worker = SimpleNamespace(goal=Goal.ENROL, state=State.CAPTURED, captured=True)
                agent: Any = SimpleNamespace(worker=dict.fromkeys(source.records, worker).get, refusals={})
                annotator = Annotator(one.api, source, agent, for_istio=True)
                tasks.start(annotator.run(), "annotations")
                await annotator.written()
                await until(tunnels, "it speaks HBONE")
                worker.goal = Goal.UNENROL
                await annotator.written()
                await until(lambda: not tunnels(), "it does not any more")
            sandboxes.close()

    asyncio.run(test())


def test_after_a_restart_of_istiod_only_what_changed_comes(istio: Stage) -> None:
    async def test() -> None:
        async with scene(istio) as one:
            ztunnel, shop = one.ztunnel, one.shop
            await shop.put_policy("deny", DENY)
            await until(lambda: f"Authorization {shop.namespace}/deny" in ztunnel.messages, "the policy")
            known = dict(ztunnel.messages)
            istio.istiod.kill()
            await until(lambda: not ztunnel.ads.connected, "the stream has ended")
            assert ztunnel.messages == known
            ztunnel.updates.clear()
            await one.api.delete(PODS, "web-1", shop.namespace, grace_s=0)
            await one.api.delete(AUTHORIZATION_POLICIES, "deny", shop.namespace)
            await shop.pod("web-3", NODE, app="web")
            await istio.istiod.start()
            await until(lambda: ztunnel.ads.connected and knows(ztunnel, shop, "web-3"), "the new pod")
            await until(lambda: f"Authorization {shop.namespace}/deny" not in ztunnel.messages, "the policy is gone")
            told = [update for update in ztunnel.updates if update.type_url == xds.ADDRESS_TYPE]
            assert {entry.name for update in told for entry in update.changed} == {shop.uid("web-3")}
            assert {name for update in told for name in update.removed} == {shop.uid("web-1")}

    asyncio.run(test())


@pytest.mark.parametrize("asks_for_roots", [False, True])
def test_asked_for_our_own_type_or_not_it_serves_the_others(istio: Stage, asks_for_roots: bool) -> None:
    async def test() -> None:
        async with scene(istio, asks_for_roots=asks_for_roots) as one:
            await until(lambda: one.ztunnel.ads.connected, "a stream that stays")
            ended = dict(one.ztunnel.ads.terminations)
            assert sum(ended.values()) <= asks_for_roots, one.ztunnel.ads.last_error
            client = str(one.ztunnel.certificate(one.shop.namespace, "client"))
            await until(lambda: client in one.ztunnel.held.by_identity, "a certificate, with roots")
            assert one.ztunnel.held.by_identity[client][2] == svid.join_roots(await roots(one.api, one.shop.namespace))
            address = await one.shop.pod("web-4", NODE, app="web")
            await until(lambda: one.ztunnel.store.workload_at(to_bytes16(address)), "the new pod")
            assert one.ztunnel.ads.terminations == ended

    asyncio.run(test())


def test_a_token_of_another_audience_is_refused_and_the_reason_shows(istio: Stage) -> None:
    async def test() -> None:
        ztunnel = Ztunnel(istio.istiod.port, NODE, await istio.credentials(NODE, "culvert-ca"))
        async with ztunnel.running():
            # One that comes while a request is still being written has lost its reason; then the next one says it.
            await until(lambda: ztunnel.ads.last_error.startswith("UNAUTHENTICATED"), "the refusal")
            assert not ztunnel.ads.synced.is_set()

    asyncio.run(test())
