import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import grpc
import grpc.aio
import pytest

from mesh import xds
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest
from ztunnel.control.ads import AdsClient, NodeIdentity

NODE = NodeIdentity("node-a", "ztunnel-x", "culvert-system", "10.0.0.9", "Kubernetes")
TYPES = (xds.ADDRESS_TYPE, xds.AUTHORIZATION_TYPE)


class Controller:
    """Plays a script: one coroutine per stream, given requests and a way to answer."""

    def __init__(self, *scripts: Callable[["Stream"], Coroutine[Any, Any, None]]) -> None:
        self.scripts = list(scripts)
        self.streams: list[Stream] = []

    async def serve(self, requests: AsyncIterator[bytes], context: Any) -> None:
        stream = Stream(requests, context)
        self.streams.append(stream)
        await self.scripts.pop(0)(stream)


class Stream:
    def __init__(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self._requests = requests
        self._context = context
        self.metadata = dict(context.invocation_metadata())
        self.received: list[DeltaDiscoveryRequest] = []

    async def next(self) -> DeltaDiscoveryRequest:
        request = DeltaDiscoveryRequest.FromString(await anext(self._requests))
        self.received.append(request)
        return request

    async def answer(
        self, type_url: str, nonce: str, resources: Mapping[str, str], removed: tuple[str, ...] = ()
    ) -> None:
        encoded = [xds.encode_resource(type_url, name, version, b"") for name, version in resources.items()]
        await self._context.write(xds.encode_response(type_url, nonce, encoded, removed))


class Link:
    """A plain channel in place of the credentials."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel | None = None

    def refresh(self) -> None:
        pass

    def channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            options = [("grpc.min_reconnect_backoff_ms", 50), ("grpc.initial_reconnect_backoff_ms", 50)]
            self._channel = grpc.aio.insecure_channel(self._address, options=options)
        return self._channel

    def metadata(self) -> list[tuple[str, str]]:
        return [("clusterid", "Kubernetes")]

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)  # type: ignore[call-arg]


def play(
    controller: Controller,
    apply: Callable[[xds.Update], Mapping[str, str]],
    extra: Mapping[str, Callable[[xds.Update], Mapping[str, str]]] | None = None,
) -> AdsClient:
    """Run a client against the controller until its scripts are played."""

    async def run() -> AdsClient:
        server = grpc.aio.server()
        method = grpc.stream_stream_rpc_method_handler(controller.serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(xds.SERVICE, {xds.METHOD: method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        link = Link(f"127.0.0.1:{port}")
        client = AdsClient(NODE, link, apply, extra)  # type: ignore[arg-type]
        task = asyncio.get_running_loop().create_task(client.run())
        try:
            async with asyncio.timeout(10):
                while controller.scripts or not controller.streams or not client.synced.is_set():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await link.close()
            await server.stop(None)
        return client

    return asyncio.run(run())


def test_a_node_names_itself_and_asks_for_everything() -> None:
    async def script(stream: Stream) -> None:
        first, second = await stream.next(), await stream.next()
        assert [first.type_url, second.type_url] == list(TYPES)
        assert first.node.id == "ztunnel~10.0.0.9~ztunnel-x.culvert-system~culvert-system.svc.cluster.local"
        assert first.node.metadata["NODE_NAME"] == "node-a"
        assert not first.resource_names_subscribe
        assert not first.initial_resource_versions
        for index, type_url in enumerate(TYPES):
            await stream.answer(type_url, f"n{index}", {"a": "1"})
            assert (await stream.next()).response_nonce == f"n{index}"
        await asyncio.sleep(0.2)

    controller = Controller(script)
    client = play(controller, lambda _: {})
    assert controller.streams[0].metadata["clusterid"] == "Kubernetes"
    assert client.messages == dict.fromkeys(TYPES, 1)


def test_a_refused_resource_is_told_and_the_rest_is_applied() -> None:
    applied: list[str] = []

    def apply(update: xds.Update) -> Mapping[str, str]:
        applied.extend(changed.name for changed in update.changed)
        return {"bad": "has no address"} if update.type_url == xds.ADDRESS_TYPE else {}

    async def script(stream: Stream) -> None:
        await stream.next()
        await stream.next()
        await stream.answer(xds.ADDRESS_TYPE, "n1", {"good": "1", "bad": "1"})
        nack = await stream.next()
        assert nack.error_detail.message == "bad: has no address"
        await stream.answer(xds.AUTHORIZATION_TYPE, "n2", {})
        assert not (await stream.next()).HasField("error_detail")
        await asyncio.sleep(0.2)

    play(Controller(script), apply)
    assert applied == ["good", "bad"]


def test_a_refused_resource_is_told_once_until_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    reasons = iter(["has no address"] * 2 + ["", "has no address", "has no name", ""])

    def apply(update: xds.Update) -> Mapping[str, str]:
        reason = next(reasons)
        return {"bad": reason} if reason else {}

    async def script(stream: Stream) -> None:
        await stream.next()
        await stream.next()
        for nonce in "12345":
            await stream.answer(xds.ADDRESS_TYPE, nonce, {"bad": nonce})
            await stream.next()
        await stream.answer(xds.AUTHORIZATION_TYPE, "6", {})
        await stream.next()
        await asyncio.sleep(0.2)

    play(Controller(script), apply)
    told = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert told == [f"resource bad refused: {reason}" for reason in ("has no address",) * 2 + ("has no name",)]


def test_a_new_stream_says_what_is_held() -> None:
    async def first(stream: Stream) -> None:
        await stream.next()
        await stream.next()
        for type_url in TYPES:
            await stream.answer(type_url, type_url[-4:], {"a": "v1", "b": "v2"})
            await stream.next()

    async def second(stream: Stream) -> None:
        request = await stream.next()
        assert dict(request.initial_resource_versions) == {"a": "v1", "b": "v2"}
        await stream.next()
        await stream.answer(xds.ADDRESS_TYPE, "again", {}, ("a",))
        await stream.next()
        await asyncio.sleep(0.2)

    removed: list[str] = []

    def apply(update: xds.Update) -> Mapping[str, str]:
        removed.extend(update.removed)
        return {}

    client = play(Controller(first, second), apply)
    assert removed == ["a"]
    assert client.terminations["complete"] == 1


def test_a_controller_that_breaks_the_protocol_is_left_and_tried_again() -> None:
    async def broken(stream: Stream) -> None:
        await stream.next()
        await stream.answer("type.googleapis.com/no.such.Type", "n", {})
        await asyncio.sleep(0.5)

    async def good(stream: Stream) -> None:
        await stream.next()
        await stream.next()
        for type_url in TYPES:
            await stream.answer(type_url, "n" + type_url[-4:], {})
            await stream.next()
        await asyncio.sleep(0.2)

    client = play(Controller(broken, good), lambda _: {})
    assert client.terminations["error"] == 1
    assert client.synced.is_set()


async def sync(stream: Stream, *, with_extra: bool) -> None:
    """The beginning of a stream on which the two types that everybody knows are answered."""
    asked = [(await stream.next()).type_url for _ in range(3 if with_extra else 2)]
    assert asked == [*TYPES, *([xds.ROOTS_TYPE] if with_extra else [])]
    for type_url in TYPES:
        await stream.answer(type_url, f"n-{type_url}", {})
        await stream.next()


def test_the_type_of_our_own_goes_to_who_takes_it() -> None:
    taken: list[str] = []

    async def script(stream: Stream) -> None:
        await sync(stream, with_extra=True)
        await stream.answer(xds.ROOTS_TYPE, "r", {"cluster.local": "1"})
        answer = await stream.next()
        assert answer.error_detail.message == "cluster.local: not now"
        await asyncio.sleep(0.1)

    def take(update: xds.Update) -> Mapping[str, str]:
        taken.extend(changed.name for changed in update.changed)
        return {"cluster.local": "not now"}

    play(Controller(script), lambda _: {}, {xds.ROOTS_TYPE: take})
    assert taken == ["cluster.local"]


def test_a_control_plane_that_never_answers_it_disturbs_nothing() -> None:
    async def script(stream: Stream) -> None:
        await sync(stream, with_extra=True)
        await asyncio.sleep(0.1)

    client = play(Controller(script), lambda _: {}, {xds.ROOTS_TYPE: lambda _: {}})
    assert client.synced.is_set()


def test_a_control_plane_that_ends_the_stream_over_it_is_not_asked_again() -> None:
    async def refuse(stream: Stream) -> None:
        for _ in range(3):
            await stream.next()
        await stream._context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unknown type")

    async def serve(stream: Stream) -> None:
        await sync(stream, with_extra=False)

    async def replaced(stream: Stream) -> None:
        await sync(stream, with_extra=True)
        await asyncio.sleep(0.1)

    controller = Controller(refuse, serve, replaced)
    client = play(controller, lambda _: {}, {xds.ROOTS_TYPE: lambda _: {}})
    assert len(controller.streams) == 3
    assert client.terminations["error"] == 1


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_who_does_not_let_us_in_has_said_nothing_about_types(status: grpc.StatusCode) -> None:
    async def refuse(stream: Stream) -> None:
        for _ in range(3):
            await stream.next()
        await stream._context.abort(status, "the token is not valid yet")

    async def serve(stream: Stream) -> None:
        await sync(stream, with_extra=True)
        await asyncio.sleep(0.1)

    client = play(Controller(refuse, serve), lambda _: {}, {xds.ROOTS_TYPE: lambda _: {}})
    assert client.terminations["error"] == 1
