"""An API server as a source, scripted: doors, batches, kinds that come and go, what is malformed."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.index.objects import Action, Change, Kind
from controller.sources.documents import read_manifest
from tests.support.waiting import until
from tests.unit.controller import recorded
from tests.unit.controller.fake_api import Answer, Request, refusal
from tests.unit.controller.nodes import pod, policy
from tests.unit.controller.worlds import feeding, make_fake, snapshot

DENY = {"action": "DENY", "rules": [{}]}
CASES = sorted(path.stem for path in recorded.FOLDER.glob("*.yaml"))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


@pytest.mark.parametrize("case", CASES)
def test_the_same_objects_make_the_same_snapshot_as_from_files(tmp_path: Path, case: str) -> None:
    documents = recorded.documents(recorded.load("base"))
    if case != "base":
        replaced = recorded.documents(recorded.load(case))
        documents = list({(one["kind"], str(one["metadata"])): one for one in [*documents, *replaced]}.values())
    unique = {(d["kind"], d["metadata"].get("namespace", "default"), d["metadata"]["name"]): d for d in documents}
    documents = [dict(one) for one in unique.values()]
    for one in documents:  # what an API server adds by itself
        one["metadata"] = {
            **one["metadata"],
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "uid": one["metadata"]["name"],
        }

    async def test() -> None:
        fake = make_fake(*documents)
        async with feeding(fake, tmp_path) as (world, _):
            (batch,) = world.batches
            manifest = read_manifest(yaml.safe_dump_all(documents), "all.yaml")
            assert manifest.faults == []
            from_files = [Change(kind, key, item) for (kind, key), item in manifest.objects.items()]
            assert {(one.kind, one.key): one.object for one in batch} == manifest.objects
            assert snapshot(batch) == snapshot(from_files)
            assert len(snapshot(batch)) > 3

    run(test)


def test_no_door_opens_before_every_kind_is_listed(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(pod("p1", "10.0.0.1"), policy("deny", DENY))
        fake.script = lambda request: refusal(503) if "authorizationpolicies" in request.path else None
        async with feeding(fake, tmp_path, opens=False) as (world, _):
            await until(lambda: bool(world.faults))
            assert world.batches == []
            assert "authorizationpolicies.security.istio.io" in str(world.faults[0])
            fake.script = lambda request: None
            await until(lambda: bool(world.batches))
            (batch,) = world.batches
            assert {change.kind for change in batch} >= {Kind.POD, Kind.AUTHORIZATION_POLICY}
            await until(lambda: not world.faults)

    run(test)


def test_a_relist_is_one_batch_of_what_differs(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(*(pod(f"p{number}", f"10.0.0.{number}") for number in range(1, 8)))
        async with feeding(fake, tmp_path) as (world, _):
            fake.delete(pod("p1", ""))
            await until(lambda: not world.has(Kind.POD, "shop/p1"))
            count = len(world.batches)
            fake.script = lambda request: refusal(503) if request.path.endswith("/pods") else None
            fake.drop_connections()
            await until(lambda: fake.requests[-1].path.endswith("/pods"))
            fake.delete(pod("p2", ""))
            fake.put(pod("p3", "10.0.9.9"), pod("p8", "10.0.0.8"))
            fake.floor = fake.version
            fake.script = lambda request: None
            await until(lambda: world.has(Kind.POD, "shop/p8"))
            (batch,) = world.batches[count:]
            assert {change.key for change in batch} == {"shop/p2", "shop/p3", "shop/p8"}

    run(test)


def test_a_relist_without_differences_says_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(pod("p1", "10.0.0.1"), policy("deny", DENY))
        async with feeding(fake, tmp_path) as (world, source):
            await source.catch_up()
            assert len(world.batches) == 1

    run(test)


def test_a_change_that_touches_no_field_of_ours_says_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(pod("p1", "10.0.0.1"))
        async with feeding(fake, tmp_path) as (world, source):
            other = pod("p1", "10.0.0.1")
            other["metadata"]["annotations"] = {"somebody.else/time": "now"}
            fake.put(other)
            await source.catch_up()
            assert len(world.batches) == 1

    run(test)


def test_a_malformed_object_is_reported_and_its_last_good_version_stays(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(policy("p", DENY), policy("q", {"action": "DENNY"}))
        async with feeding(fake, tmp_path) as (world, source):
            (fault,) = world.faults
            assert fault.object == "AuthorizationPolicy shop/q"
            assert fault.place == "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/q"
            assert fault.field == "spec.action"
            fake.put(policy("p", {"action": "DENY", "rules": [{"form": []}]}))
            await until(lambda: len(world.faults) == 2)
            item: Any = world.objects[Kind.AUTHORIZATION_POLICY, "shop/p"]
            assert len(item.rules) == 1
            await source.catch_up()
            assert world.objects[Kind.AUTHORIZATION_POLICY, "shop/p"] is item
            fake.put(policy("p", {"action": "ALLOW"}))
            await until(lambda: len(world.faults) == 1)
            assert getattr(world.objects[Kind.AUTHORIZATION_POLICY, "shop/p"], "action", None) is Action.ALLOW
            fake.delete(policy("q", {}))
            await until(lambda: not world.faults)

    run(test)


@pytest.mark.parametrize("how", ["watched", "listed"])
def test_a_malformed_policy_inherits_nothing_from_another_that_had_its_name(tmp_path: Path, how: str) -> None:
    async def test() -> None:
        fake = make_fake(policy("p", DENY))
        key = (Kind.AUTHORIZATION_POLICY, "shop/p")
        async with feeding(fake, tmp_path) as (world, source):
            assert key in world.objects
            fake.script = lambda request: refusal(503) if "authorizationpolicies" in request.path else None
            fake.drop_connections()
            fake.delete(policy("p", {}))
            fake.put(policy("p", {"action": "DENY", "rules": [{"form": []}]}))
            if how == "listed":
                fake.floor = fake.version  # of the deletion nobody tells any more
            fake.script = lambda request: None
            await until(lambda: bool(world.faults) and key not in world.objects)
            assert source.written[key].understood == ""

    run(test)


def test_a_controller_that_starts_on_a_malformed_policy_knows_its_last_good_version_from_its_status(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        misspelt = {"action": "DENY", "rules": [{"form": []}]}
        good = policy("p", DENY)
        good["metadata"]["annotations"] = {"istio.io/dry-run": "true"}
        fake = make_fake(good)
        key = (Kind.AUTHORIZATION_POLICY, "shop/p")
        async with feeding(fake, tmp_path) as (world, source):
            assert (source.written[key].understood, source.written[key].kept) == ("", "")
            before = world.objects[key]
            fake.put(policy("p", misspelt))
            await until(lambda: bool(source.written[key].understood))
            understood = source.written[key].understood
        fake.put({**policy("p", misspelt), "status": {"lastUnderstood": understood}})
        async with feeding(fake, tmp_path) as (world, source):
            assert world.objects[key] == before
            assert len(world.faults) == 1
            assert source.written[key].understood == source.written[key].kept == understood
            fake.put({**policy("p", {"action": "ALLOW"}), "status": {"lastUnderstood": understood}})
            await until(lambda: not world.faults)
            assert getattr(world.objects[key], "action", None) is Action.ALLOW
            assert (source.written[key].understood, source.written[key].kept) == ("", understood)

    run(test)


@pytest.mark.parametrize("kept", ["", "{", "[]", "null", '{"spec": 1}', '{"spec": {"action": 1}}', 7, {"spec": {}}])
def test_a_status_that_keeps_nothing_usable_is_nothing(tmp_path: Path, kept: Any) -> None:
    async def test() -> None:
        fake = make_fake({**policy("p", {"action": "DENNY"}), "status": {"lastUnderstood": kept}})
        async with feeding(fake, tmp_path) as (world, _):
            assert not world.has(Kind.AUTHORIZATION_POLICY, "shop/p")
            assert len(world.faults) == 1

    run(test)


def test_two_objects_of_one_name_in_a_list_are_the_later_one(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(policy("p", DENY))
        path = "/apis/security.istio.io/v1/authorizationpolicies"
        new = {
            **policy("p", {"action": "ALLOW"}),
            "metadata": {"name": "p", "namespace": "shop", "resourceVersion": "9000"},
        }
        for order in (0, 1):
            fake.objects[path] = {"a": fake.objects[path].popitem()[1]} if len(fake.objects[path]) == 1 else {}
            old = {**policy("p", DENY), "metadata": {"name": "p", "namespace": "shop", "resourceVersion": "90"}}
            fake.objects[path] = dict(zip("ab", [old, new] if order else [new, old], strict=True))
            async with feeding(fake, tmp_path) as (world, _):
                item: Any = world.objects[Kind.AUTHORIZATION_POLICY, "shop/p"]
                assert item.action is Action.ALLOW

    run(test)


def test_a_namespace_that_is_deleted_with_everything_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
        inside = [pod("p1", "10.0.0.1"), pod("p2", "10.0.0.2"), policy("deny", DENY)]
        fake = make_fake(space, *inside, pod("other", "10.0.1.1", ns="kept"))
        async with feeding(fake, tmp_path) as (world, _):
            for one in (*inside, space):
                fake.delete(one)
            await until(lambda: not world.has(Kind.NAMESPACE, "shop") and len(world.objects) == 1)
            assert list(world.objects) == [(Kind.POD, "kept/other")]

    run(test)


def test_an_api_server_that_is_away_takes_nothing_and_is_said_until_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(pod("p1", "10.0.0.1"), policy("deny", DENY))
        async with feeding(fake, tmp_path) as (world, source):
            await fake.stop()
            await until(lambda: len(world.faults) == 9)
            assert {fault.object for fault in world.faults} == {""}
            assert len(world.objects) == 2
            assert len(world.batches) == 1
            assert len(source.away) == 9
            await fake.start()
            fake.put(pod("p2", "10.0.0.2"))
            await until(lambda: world.has(Kind.POD, "shop/p2") and not world.faults)

    run(test)


def test_what_is_written_on_policies_is_known_with_what_they_ask_for(tmp_path: Path) -> None:
    async def test() -> None:
        conditions = [{"type": "Other", "status": "True"}]
        fake = make_fake({**policy("p", DENY), "status": {"conditions": conditions}})
        async with feeding(fake, tmp_path) as (world, source):
            key = (Kind.AUTHORIZATION_POLICY, "shop/p")
            assert source.written[key].generation == 1
            assert source.written[key].conditions == tuple(conditions)
            looks = world.looks
            fake.put({**policy("p", DENY), "status": {"conditions": []}})
            await until(lambda: world.looks > looks)
            assert source.written[key].conditions == ()
            assert len(world.batches) == 1

    run(test)


def test_a_burst_is_one_batch_with_the_last_word_on_each_object(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake()
        async with feeding(fake, tmp_path) as (world, _):
            count = len(world.batches)
            for number in range(1, 30):
                fake.put(pod("p", f"10.0.0.{number}"))
            await until(lambda: world.has(Kind.POD, "shop/p"))
            item: Any = world.objects[Kind.POD, "shop/p"]
            await until(lambda: getattr(world.objects[Kind.POD, "shop/p"], "addresses", ()) == (bytes([10, 0, 0, 29]),))
            assert len(world.batches) - count < 10
            assert dataclasses.is_dataclass(item)

    run(test)


def test_a_server_that_is_slow_with_one_kind_holds_up_that_kind_only(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake(pod("p1", "10.0.0.1"))
        async with feeding(fake, tmp_path) as (world, _):
            fake.script = lambda request: Answer(hang=True) if request.path.endswith("/services") else None
            fake.drop_connections()
            fake.put(pod("p2", "10.0.0.2"), policy("deny", DENY))
            await until(lambda: world.has(Kind.POD, "shop/p2") and world.has(Kind.AUTHORIZATION_POLICY, "shop/deny"))

    run(test)


def test_the_request_is_for_metadata_where_that_is_enough(tmp_path: Path) -> None:
    async def test() -> None:
        fake = make_fake()
        accepts: dict[str, str] = {}

        def script(request: Request) -> None:
            accepts[request.path.rpartition("/")[2]] = request.accept

        fake.script = script
        async with feeding(fake, tmp_path):
            assert "PartialObjectMetadata" in accepts["namespaces"]
            assert "PartialObjectMetadata" in accepts["customresourcedefinitions"]
            assert accepts["pods"] == "application/json"

    run(test)
