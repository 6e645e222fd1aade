"""What every way to make certificates has in common; which one serves is a setting (`--ca`)."""

import datetime
from collections.abc import Callable, Sequence
from typing import Protocol

from cryptography import x509

from controller.ca import keys
from controller.ca.authority import Issued
from mesh.identity import Identity


class CertificateAuthority(Protocol):
    """Makes certificates and knows which roots are trusted. It decides nothing about who may have what."""

    on_issuer: Callable[[], None]  # called when another issuer signs than before, or other roots are trusted

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """All that are trusted now."""

    async def open(self) -> None:
        """Return when certificates can be made; raises IssuerUnavailable if that will never be."""

    async def run(self) -> None:
        """Keep up with what changes, for as long as the task lives."""

    async def issue(self, csr_pem: str, identity: Identity, lifetime_s: int) -> Issued:
        """A leaf for the key of a CSR, with the identity as its only name; raises InvalidRequest or NotIssued."""

    async def issue_serving(
        self, key: keys.IssuerKey, names: Sequence[x509.GeneralName], lifetime: datetime.timedelta
    ) -> Issued:
        """A leaf for a server of the control plane itself; raises NotIssued."""
