"""The issuer of a controller in Kubernetes: what the Secret says, now and whenever it changes."""

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cryptography import x509

from controller.ca import distribution, keys
from controller.ca.authority import Authority, Clock, Issued, Lifetimes, NotIssued
from controller.ca.distribution import Distribution
from controller.ca.keeper import Keeper, Terms
from controller.ca.trust import Trust
from controller.serve.hub import Hub
from controller.status.metrics import Metrics
from mesh.identity import Identity

if TYPE_CHECKING:
    from mesh.kube.api import Api


class ClusterAuthority:
    """Implements CertificateAuthority; `on_issuer` is called when another issuer signs than before."""

    def __init__(
        self,
        api: "Api",
        terms: Terms,
        lifetimes: Lifetimes,
        hub: Hub,
        metrics: Metrics,
        clock: Clock,
        is_leader: Callable[[], bool],
    ) -> None:
        self._lifetimes = lifetimes
        self._terms = terms
        self._hub = hub
        self._metrics = metrics
        self._clock = clock
        self._authority: Authority | None = None
        audience = Distribution(api, terms.namespace, hub, lambda: self.keeper.faults, clock)
        self.keeper = Keeper(api, terms, self._take, is_leader, audience, clock)
        self.on_issuer: Callable[[], None] = lambda: None

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """All that are trusted now."""
        return self._authority.roots if self._authority is not None else ()

    async def open(self) -> None:
        """Read the Secret or create it; raises IssuerUnavailable."""
        await self.keeper.open()

    async def run(self) -> None:
        """Follow the Secret and, as the leader, bring it forward."""
        await self.keeper.run()

    async def issue(self, csr_pem: str, identity: Identity, lifetime_s: int) -> Issued:
        """A leaf for the key of a CSR; raises InvalidRequest or NotIssued."""
        return self._signing().sign_request(csr_pem, identity, lifetime_s)

    async def issue_serving(
        self, key: keys.IssuerKey, names: Sequence[x509.GeneralName], lifetime: datetime.timedelta
    ) -> Issued:
        """A leaf for a server of the control plane itself; raises NotIssued."""
        return self._signing().sign(key.public_key(), names, lifetime)

    def _signing(self) -> Authority:
        if self._authority is None:
            raise NotIssued("there is no issuer yet")
        return self._authority

    def _take(self, trust: Trust) -> None:
        distribution.measure(self._metrics, trust)
        before, roots = self._authority, trust.certificates
        self._authority = Authority(trust.issuer, self._lifetimes, self._clock)
        self._authority.use(trust.issuer, roots)
        distribution.push_roots(self._hub, self._terms.trust_domain, roots)
        if before is not None and (before.issuer.certificate, before.roots) != (trust.issuer.certificate, roots):
            self.on_issuer()
