"""The issuer of a standalone controller: files, read once."""

import asyncio
from collections.abc import Callable

from controller.ca.authority import Authority
from controller.ca.distribution import push_roots
from controller.serve.hub import Hub


class LocalAuthority(Authority):
    """Implements CertificateAuthority with an issuer that does not change while the process lives."""

    on_issuer: Callable[[], None]

    def announce(self, hub: Hub, trust_domain: str) -> None:
        """Put the roots where nodes get them."""
        push_roots(hub, trust_domain, self.roots)

    async def open(self) -> None:
        """Nothing to wait for: it was made from what was read."""

    async def run(self) -> None:
        """Nothing changes."""
        await asyncio.Event().wait()
