"""Kinds that a cluster may or may not have, against a scripted API server: defined, served, gone."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from controller.index.objects import Kind
from tests.support.waiting import until
from tests.unit.controller.fake_api import FakeApi, definition, refusal
from tests.unit.controller.nodes import pod, policy
from tests.unit.controller.worlds import feeding, make_fake

DENY = {"action": "DENY", "rules": [{}]}


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_kind_that_is_defined_later_and_goes_again(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(pod("p1", "10.0.0.1"))
        async with feeding(fake, tmp_path) as (world, _):
            assert world.faults == ()
            fake.define("AuthorizationPolicy")
            fake.put(policy("deny", DENY))
            await until(lambda: world.has(Kind.AUTHORIZATION_POLICY, "shop/deny"))
            fake.delete(definition("AuthorizationPolicy", "security.istio.io"))
            await until(lambda: not world.has(Kind.AUTHORIZATION_POLICY, "shop/deny"))
            assert world.has(Kind.POD, "shop/p1")

    run(test)


def test_a_collection_that_is_not_served_while_it_is_defined_takes_nothing_back(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(policy("deny", DENY))
        async with feeding(fake, tmp_path) as (world, _):
            fake.script = lambda request: refusal(404) if "/authorizationpolicies" in request.path else None
            fake.drop_connections()
            await until(lambda: any("authorizationpolicies" in str(fault) for fault in world.faults))
            assert world.has(Kind.AUTHORIZATION_POLICY, "shop/deny")
            fake.script = lambda request: None
            fake.put(policy("more", DENY))
            await until(lambda: world.has(Kind.AUTHORIZATION_POLICY, "shop/more"))
            await until(lambda: not world.faults)

    run(test)


def test_a_kind_is_read_in_the_version_that_is_served(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(definition("AuthorizationPolicy", "security.istio.io", "v1beta1"))
        old = {**policy("deny", DENY), "apiVersion": "security.istio.io/v1beta1"}
        fake.put(old)
        async with feeding(fake, tmp_path) as (world, source):
            assert world.has(Kind.AUTHORIZATION_POLICY, "shop/deny")
            assert source.written[Kind.AUTHORIZATION_POLICY, "shop/deny"].api_version == "security.istio.io/v1beta1"
            fake.put(policy("deny", DENY))
            fake.put(definition("AuthorizationPolicy", "security.istio.io", "v1"))
            await until(
                lambda: source.written[Kind.AUTHORIZATION_POLICY, "shop/deny"].api_version == "security.istio.io/v1"
            )

    run(test)


def test_policies_that_nobody_can_read_open_no_door_and_the_reason_is_said(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(definition("AuthorizationPolicy", "security.istio.io", "v9"))
        async with feeding(fake, tmp_path, opens=False) as (world, _):
            await until(lambda: any("no version that is known here (v1, v1beta1)" in str(one) for one in world.faults))
            assert world.batches == []
            fake.define("AuthorizationPolicy")
            await until(lambda: bool(world.batches))

    run(test)


def test_routes_that_nobody_can_read_are_said_and_keep_nobody_waiting(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(definition("HTTPRoute", "gateway.networking.k8s.io", "v9"))
        async with feeding(fake, tmp_path) as (world, _):
            await until(lambda: any("httproutes" in str(one) for one in world.faults))

    run(test)
