"""Requests and what comes of refusals, on a scripted server."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mesh.kube import errors
from mesh.kube.api import MAX_REQUESTS, Api, Selection
from mesh.kube.errors import Misconfigured
from mesh.kube.resources import CONFIG_MAPS, EVENTS, NAMESPACES, PODS, Resource
from tests.support.waiting import until
from tests.unit.controller.fake_api import Answer, FakeApi, refusal
from tests.unit.controller.nodes import pod


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Invalid),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (410, errors.Gone),
        (422, errors.Invalid),
        (429, errors.TooManyRequests),
        (500, errors.Unavailable),
        (503, errors.Unavailable),
        (302, errors.Unavailable),
    ],
)
def test_a_refusal_has_the_servers_sentence_and_a_meaning(
    tmp_path: Path, status: int, kind: type[errors.ApiFault]
) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: refusal(status, "because of the moon", Retry_After="7", Location="/elsewhere")
        async with fake.serving(tmp_path) as api:
            with pytest.raises(kind) as caught:
                await api.get(PODS, "web", "shop")
            assert str(caught.value) == f"GET /api/v1/namespaces/shop/pods/web: {status}: because of the moon"
            assert type(caught.value) is kind
            assert caught.value.status == status
            assert caught.value.retry_after_s == 7
            assert len(fake.requests) == 1

    run(test)


def test_no_server_and_no_answer_are_unavailable(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        async with fake.serving(tmp_path) as api:
            fake.script = lambda request: Answer(hang=True)
            started = time.monotonic()
            with pytest.raises(errors.Unavailable, match="timed out"):
                await api.get(PODS, "web", "shop", timeout_s=0.2)
            assert time.monotonic() - started < 2
            await fake.stop()
            with pytest.raises(errors.Unavailable, match="refused"):
                await api.get(PODS, "web", "shop")
            await fake.start()

    run(test)


@pytest.mark.parametrize("body", [b"<html>", b"{", b"\xff\xfe"])
def test_an_answer_that_is_not_json_is_no_answer(tmp_path: Path, body: bytes) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: Answer(200, raw=body)
        async with fake.serving(tmp_path) as api:
            with pytest.raises(errors.Unavailable, match="not JSON"):
                await api.get(PODS, "web", "shop")

    run(test)


def test_a_long_refusal_spoils_no_other_request(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put(pod("web", "10.0.0.1"))
        long = Answer(500, raw=b"x" * 500_000)
        fake.script = lambda request: long if len(fake.requests) % 2 else None
        async with fake.serving(tmp_path) as api:
            for _ in range(5):
                with pytest.raises(errors.Unavailable) as caught:
                    await api.get(PODS, "web", "shop")
                assert len(str(caught.value)) < 1000
                assert (await api.get(PODS, "web", "shop"))["metadata"]["name"] == "web"

    run(test)


def test_no_more_than_so_many_requests_run_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.script = lambda request: Answer(hang=True)
        async with fake.serving(tmp_path) as api:
            asking = [
                asyncio.get_running_loop().create_task(api.get(PODS, f"p{number}", "shop"))
                for number in range(2 * MAX_REQUESTS)
            ]
            await until(lambda: len(fake.requests) == MAX_REQUESTS)
            await asyncio.sleep(0.05)
            assert len(fake.requests) == MAX_REQUESTS
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            fake.script = lambda request: None
            with contextlib.suppress(errors.NotFound):
                await api.get(PODS, "web", "shop")  # who gave up holds no turn

    run(test)


def test_a_change_names_its_writer_and_says_what_kind_of_patch_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
        async with fake.serving(tmp_path) as api:
            await api.merge_patch(NAMESPACES, "shop", {"metadata": {"labels": {"a": "b"}}})
            (request,) = fake.requests
            assert request.content_type == "application/merge-patch+json"
            assert request.query == {"fieldManager": "culvert-controller"}
            assert fake.objects["/api/v1/namespaces"]["shop"]["metadata"]["labels"] == {"a": "b"}

    run(test)


def test_pages_end(tmp_path: Path) -> None:
    async def test() -> None:
        fake = FakeApi()
        fake.page_size_limit = 2
        async with fake.serving(tmp_path) as api:
            assert [page async for page in api.pages(Selection(PODS))] == [[]]
            fake.put(*(pod(f"p{number}", "10.0.0.1") for number in range(5)))
            first = await api.page(Selection(PODS), limit=2)
            assert (len(first.items), first.version) == (2, str(fake.version))
            assert len([one async for page in api.pages(Selection(PODS)) for one in page]) == 5

    run(test)


def test_paths() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("shop", "web", "status") == "/api/v1/namespaces/shop/pods/web/status"
    assert NAMESPACES.path("ignored", "shop") == "/api/v1/namespaces/shop"
    assert EVENTS.path("shop") == "/apis/events.k8s.io/v1/namespaces/shop/events"
    assert str(Resource("g.example", "v1", "things")) == "things.g.example"
    assert CONFIG_MAPS.api_version == "v1"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"clusters": []}', '{"current-context": "x", "contexts": [], "clusters": [], "users": []}']
)
def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(Misconfigured, match="kubeconfig"):
        Api.connect(path)


def test_outside_of_a_cluster_there_must_be_a_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Misconfigured, match="give --kubeconfig"):
        Api.connect()
