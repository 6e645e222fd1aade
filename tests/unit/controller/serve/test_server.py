"""The serving certificate: handed to gRPC when it has changed, and only then."""

import asyncio
import contextlib
import datetime
from pathlib import Path

from controller.ca.authority import Authority, Lifetimes
from controller.ca.issuer import load_or_create_root
from controller.serve.server import ServingCertificate


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
