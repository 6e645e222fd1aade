"""A controller on loopback and nodes that talk to it over real gRPC."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import yaml

from controller.app import Controller
from controller.ca.credential import issue_credential
from controller.config import AuthorityConfig, Config, MeshConfig, ServeConfig, SourceConfig
from mesh.aio import Background
from mesh.wire.agent_pb2 import CaptureAck, CaptureReport
from mesh.wire.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node
from mesh.xds import ADDRESS_TYPE, AUTHORIZATION_TYPE, DELTA_METHOD, Subscriber, Update
from tests.support.waiting import until

WAIT_S = 10.0


def pod(name: str, ip: str, node: str = "node-a", ns: str = "shop", **extra: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": ns, "uid": f"uid-{name}", "labels": extra.get("labels", {})},
        "spec": {"nodeName": node, "serviceAccountName": extra.get("sa", name)},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def policy(name: str, spec: dict[str, Any], kind: str = "AuthorizationPolicy", ns: str = "shop") -> dict[str, Any]:
    metadata = {"name": name, "namespace": ns}
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


class Manifests:
    """The directory that a test's controller reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, *documents: dict[str, Any]) -> None:
        self.write_text(name, yaml.safe_dump_all(documents))

    def write_text(self, name: str, text: str) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_text(text)
        temporary.rename(self.folder / f"{name}.yaml")

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.yaml").unlink()


def config(tmp_path: Path, **mesh: Any) -> Config:
    (tmp_path / "manifests").mkdir(exist_ok=True)
    return Config(
        state=tmp_path / "state",
        drain_s=0.2,
        source=SourceConfig(manifests=tmp_path / "manifests"),
        mesh=MeshConfig(**mesh),
        serve=ServeConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", debug_listen="127.0.0.1:0"),
        authority=AuthorityConfig(),
    )


@contextlib.asynccontextmanager
async def running(settings: Config) -> AsyncIterator[Controller]:
    controller = Controller(settings)
    stop = asyncio.Event()
    task = asyncio.get_running_loop().create_task(controller.run(stop), name="controller")
    try:
        await until(lambda: controller.is_ready or task.done())
        yield controller
    finally:
        stop.set()
        await task


def credentials(controller: Controller, out: Path, node: str) -> grpc.ChannelCredentials:
    issue_credential(controller.authority, "cluster.local", node, out, datetime.timedelta(hours=1))
    return channel_credentials(out)


def channel_credentials(folder: Path) -> grpc.ChannelCredentials:
    names = ("roots.pem", "key.pem", "cert.pem")
    return grpc.ssl_channel_credentials(*((folder / name).read_bytes() for name in names))


class FakeNode:
    """A node's ztunnel and agent: keeps what it was sent, answers everything, refuses what `refuse` says."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self.channel = channel
        self.name = name
        self.subscriber = Subscriber(Node(id=name), [ADDRESS_TYPE, AUTHORIZATION_TYPE])
        self.held: dict[str, bytes] = {}
        self.updates: list[Update] = []
        self.refuse: Callable[[str], str | None] = lambda name: None
        self.changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def streaming(self) -> AsyncIterator["FakeNode"]:
        method: Any = self.channel.stream_stream(
            DELTA_METHOD,
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call = method()
        async with Background() as tasks:
            tasks.run_once(self._follow(call), "fake-node")
            yield self
            call.cancel()

    async def _follow(self, call: Any) -> None:
        for request in self.subscriber.open():
            await call.write(request)
        with contextlib.suppress(asyncio.CancelledError):
            async for response in call:
                update = self.subscriber.receive(response)
                faults = {one.name: why for one in update.changed if (why := self.refuse(one.name))}
                for one in update.changed:
                    if one.name not in faults:
                        self.held[one.name] = one.value
                for name in update.removed:
                    self.held.pop(name, None)
                self.updates.append(update)
                self.changed.set()
                await call.write(self.subscriber.answer(update, faults))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def raw_stream(self) -> Any:
        """A stream on which the test says every byte itself."""
        return raw_stream(self.channel)

    def report_captures(self) -> Any:
        method: Any = self.channel.stream_stream(
            "/culvert.agent.v1.CaptureReports/Report",
            request_serializer=CaptureReport.SerializeToString,
            response_deserializer=CaptureAck.FromString,
        )
        return method()


def raw_stream(channel: Any) -> Any:
    return channel.stream_stream(DELTA_METHOD)()


@contextlib.asynccontextmanager
async def node(controller: Controller, tmp_path: Path, name: str = "node-a") -> AsyncIterator[FakeNode]:
    proof = credentials(controller, tmp_path / f"credentials-{name}", name)
    async with grpc.aio.secure_channel(f"127.0.0.1:{controller.port}", proof) as channel:
        yield FakeNode(channel, name)


async def fetch(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a page of the controller's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body
