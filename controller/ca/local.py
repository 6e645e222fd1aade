"""The issuer of a standalone controller: files, read once."""

import asyncio
from collections.abc import Callable

from controller.ca.authority import Authority
from controller.ca.distribution import measure, push_roots
from controller.ca.trust import Trust, TrustedRoot
from controller.serve.hub import Hub
from controller.status.metrics import Metrics


class LocalAuthority(Authority):
    """Implements CertificateAuthority with an issuer that does not change while the process lives."""

    on_issuer: Callable[[], None]

    def announce(self, hub: Hub, metrics: Metrics, trust_domain: str) -> None:
        """Put the roots where nodes get them, and tell monitoring when what signs ends."""
        push_roots(hub, trust_domain, self.roots)
        now = self._clock()
        measure(metrics, Trust(self.issuer, tuple(TrustedRoot(root, now) for root in self.roots)))

    async def open(self) -> None:
        """Nothing to wait for: it was made from what was read."""

    async def run(self) -> None:
        """Nothing changes."""
        await asyncio.Event().wait()
