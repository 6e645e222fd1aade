"""The gRPC side of capture reports: a stream to the controller with whatever credentials are on disk then.

Each stream has a channel of its own, so that renewed credentials and a controller at another address need nothing but
a new stream. gRPC is imported when the first one is opened.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from daemonset.reports import ControllerAway, ReportStream, StreamOver
from mesh.wire import agent_pb2 as wire

METHOD = "/culvert.agent.v1.CaptureReports/Report"


class _GrpcStream:
    """A ReportStream over one gRPC call."""

    def __init__(self, call: Any, is_stale: Callable[[], bool]) -> None:
        self._call = call
        self.is_stale = is_stale

    async def write(self, report: wire.CaptureReport) -> None:
        async with self._named_faults():
            await self._call.write(report)

    async def read(self) -> wire.CaptureAck:
        async with self._named_faults():
            answer = await self._call.read()
            if not isinstance(answer, wire.CaptureAck):  # grpc.aio.EOF
                code, details = await self._call.code(), await self._call.details()
                if code.value[0] == 0:
                    raise StreamOver("the stream had its time, connecting anew")
                raise ControllerAway(f"it has ended the stream: {code.name.lower()} {details}".rstrip())
        return answer

    @contextlib.asynccontextmanager
    async def _named_faults(self) -> AsyncIterator[None]:
        import grpc.aio  # noqa: PLC0415 - loaded already, by whoever made the call

        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise ControllerAway(f"{error.code().name.lower()}: {error.details()}") from error
        except asyncio.InvalidStateError as error:  # what grpc.aio says of a write on an ended call
            raise ControllerAway("the stream has ended") from error


class ControllerLink:
    """Opens report streams to the controller over gRPC, with whatever credentials are on disk then."""

    def __init__(
        self, address: str, name: str, directory: Path, token: Path | None, cluster_id: str, roots: Path | None = None
    ) -> None:
        self._address = address
        self._name = name
        self._directory = directory
        self._token = token
        self._roots = roots
        self._cluster_id = cluster_id

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[ReportStream]:
        """A stream on a channel of its own; raises ControllerAway."""
        from mesh import channel  # noqa: PLC0415 - gRPC costs 16 MB: only when there is a controller to talk to

        credentials = channel.Credentials(self._directory, self._token, self._cluster_id, self._roots)
        stamp = credentials.stamp()
        try:
            made = channel.open_channel(self._address, self._name, credentials)
            metadata = credentials.metadata()
        except channel.CredentialFault as fault:
            raise ControllerAway(str(fault)) from fault
        try:
            call = made.stream_stream(
                METHOD,
                request_serializer=wire.CaptureReport.SerializeToString,
                response_deserializer=wire.CaptureAck.FromString,
            )(None, metadata=tuple(metadata))
            yield _GrpcStream(call, lambda: credentials.stamp() != stamp)
        finally:
            await made.close(None)
