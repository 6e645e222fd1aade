"""The control side of a ztunnel of ours, put together around an engine that a test drives."""

import contextlib
from collections.abc import AsyncIterator

from mesh import xds
from mesh.aio import Background
from mesh.channel import Credentials
from mesh.identity import Identity
from tests.support.engine import Engine
from tests.support.pki import Credential
from ztunnel.control.ads import AdsClient, NodeIdentity
from ztunnel.control.link import ControllerLink
from ztunnel.identity.ca import GrpcCa
from ztunnel.identity.manager import IdentityManager
from ztunnel.identity.roots import RootsUpdates
from ztunnel.identity.svid import now_utc

NAME = "culvert-controller.culvert-system.svc"


class EngineSink:
    """An engine that takes identities as ztunnel gives them, and the last of them for the test to look at."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.last = Credential("", "", "")

    def put_identity(self, identity: str, chain_pem: str, key_pem: str, roots_pem: str) -> None:
        self.last = Credential(chain_pem, key_pem, roots_pem)
        assert not self.engine.put_identity(identity, self.last)

    def remove_identity(self, identity: str) -> None:
        raise AssertionError(f"{identity} was withdrawn")


class ControlSide:
    """The control side of a ztunnel with one identity: its own channel, stream and certificates."""

    def __init__(self, sink: EngineSink, identity: str, credentials: Credentials, port: int, ttl_s: int) -> None:
        self.sink = sink
        self._identity = Identity.parse(identity)
        self._link = ControllerLink(f"127.0.0.1:{port}", NAME, credentials)
        self._ca = GrpcCa(self._link.channel, self._link.metadata, ttl_s)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        name = NodeIdentity("node", "ztunnel", "culvert-system", "127.0.0.1", "Kubernetes")
        async with Background() as tasks:
            manager = IdentityManager(self._ca, self.sink, tasks, now_utc)
            extra = {xds.ROOTS_TYPE: RootsUpdates(manager.trust).apply}
            tasks.start(AdsClient(name, self._link, lambda _: {}, extra).run(), "stream")
            manager.acquire(self._identity)
            yield
        await self._link.close()
