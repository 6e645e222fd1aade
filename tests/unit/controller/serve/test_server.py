"""The serving certificate, handed to gRPC when it has changed and only then; nodes that are gone without a word."""

import asyncio
import contextlib
import datetime
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.ca.authority import Authority, Lifetimes
from controller.ca.issuer import load_or_create_root
from controller.serve.server import ServingCertificate, make_server
from mesh.channel import Keepalive
from tests.support.relay import Relay
from tests.support.waiting import until
from tests.unit.controller.nodes import raw_stream


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_grpc_is_given_a_certificate_once(tmp_path: Path) -> None:
    async def test() -> None:
        authority = Authority(load_or_create_root(tmp_path, "cluster.local", now()), Lifetimes(), now)
        certificate = ServingCertificate(authority, ["controller"], [])
        await certificate.open()
        fetch = certificate.changes()
        assert [fetch() for _ in range(3)] == [None, None, None], "it is given the first one with the credentials"
        certificate.renew()
        renewing = asyncio.get_running_loop().create_task(certificate.keep_fresh())
        async with asyncio.timeout(10):
            while (found := fetch()) is None:
                await asyncio.sleep(0)
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing
        assert found is not None
        assert fetch() is None

    asyncio.run(test())


class Methods:
    """All methods of the server: streams that last until their node is gone."""

    def __init__(self) -> None:
        self.streams = 0

    async def serve(self, requests: Any, context: Any) -> None:
        self.streams += 1
        try:
            async for _ in requests:
                pass
        finally:
            self.streams -= 1

    create = serve


@pytest.mark.slow
def test_a_node_that_stands_still_is_noticed() -> None:
    async def test() -> None:
        methods: Any = Methods()
        server = make_server(methods, methods, methods, Keepalive(0.5, 0.5))
        target = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with (
            Relay(target).serving() as relay,
            grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as channel,
        ):
            call = raw_stream(channel)
            await call.write(b"")
            await until(lambda: methods.streams == 1)
            await asyncio.sleep(1.5)
            assert methods.streams == 1
            relay.stand_still()
            began = time.monotonic()
            await until(lambda: methods.streams == 0, 20)
            assert time.monotonic() - began < 3
        await server.stop(0)

    asyncio.run(test())
