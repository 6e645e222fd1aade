"""Signing: from a request for an identity to a certificate of exactly that identity."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509

from controller.ca import keys
from controller.ca.issuer import Issuer
from mesh.identity import Identity

Clock = Callable[[], datetime.datetime]

# A CSR is a key, a name and a signature; RSA-4096 stays below 4 KiB.
MAX_CSR_BYTES = 16 * 1024


class InvalidRequest(ValueError):
    """A certificate request that is not answered; the message says why."""


class NotIssued(Exception):
    """There is no certificate now, through no fault of the request; the message says why."""


class IssuerExpired(NotIssued):
    """The issuer has too little life left to sign anything of use."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long leaves live, by default and at most."""

    default: datetime.timedelta = datetime.timedelta(hours=24)
    longest: datetime.timedelta = datetime.timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its way to the roots."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]

    @property
    def pem_chain(self) -> list[str]:
        """Leaf, intermediates, and all roots in the last element."""
        roots = b"".join(map(keys.certificate_pem, self.roots)).decode()
        return [keys.certificate_pem(one).decode() for one in (self.certificate, *self.chain)] + [roots]


class Authority:
    """Signs with one issuer. It decides nothing about who may have what."""

    def __init__(self, issuer: Issuer, lifetimes: Lifetimes, clock: Clock) -> None:
        self.issuer = issuer
        self.roots = issuer.roots
        self._lifetimes = lifetimes
        self._clock = clock

    def use(self, issuer: Issuer, roots: tuple[x509.Certificate, ...]) -> None:
        """From now on sign with this issuer, and say that these roots are to be trusted: its own and others."""
        self.issuer, self.roots = issuer, roots

    async def issue_serving(
        self, key: keys.IssuerKey, names: Sequence[x509.GeneralName], lifetime: datetime.timedelta
    ) -> Issued:
        """A leaf for a server of the control plane itself; raises NotIssued."""
        return self.sign(key.public_key(), names, lifetime)

    async def issue(self, csr_pem: str, identity: Identity, lifetime_s: int) -> Issued:
        """As `sign_request`, for whoever may have to wait for another kind of signer."""
        return self.sign_request(csr_pem, identity, lifetime_s)

    def sign_request(self, csr_pem: str, identity: Identity, lifetime_s: int) -> Issued:
        """A leaf for the key of a CSR, with the identity as its only name; raises InvalidRequest."""
        key = requested_key(csr_pem, identity)
        wanted = datetime.timedelta(seconds=min(lifetime_s, int(self._lifetimes.longest.total_seconds())))
        lifetime = wanted if lifetime_s > 0 else self._lifetimes.default
        return self.sign(key, keys.uris([str(identity)]), lifetime)

    def sign(self, key: keys.PublicKey, names: Sequence[x509.GeneralName], lifetime: datetime.timedelta) -> Issued:
        """A leaf that never outlives its issuer or the longest lifetime; raises IssuerExpired."""
        now = self._clock()
        horizon = self.issuer.expires
        until = min(now + min(lifetime, self._lifetimes.longest), horizon)
        if until <= now:
            raise IssuerExpired(f"the issuer of certificates expired {horizon}")
        certificate = keys.make_leaf(key, names, self.issuer.certificate, self.issuer.key, now, until)
        return Issued(certificate, self.issuer.intermediates, self.roots)


def requested_key(csr_pem: str, identity: Identity) -> keys.PublicKey:
    """The key of a CSR that names nothing but the identity; raises InvalidRequest."""
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidRequest(f"the CSR has more than {MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        is_signed = csr.is_signature_valid
        key = keys.accept_public_key(csr.public_key())
        names = _requested_names(csr)
    except keys.InvalidKey as error:
        raise InvalidRequest(str(error)) from error
    except Exception as error:  # the parser raises what it likes on hostile input
        raise InvalidRequest(f"the CSR cannot be read: {error}") from error
    if not is_signed:
        raise InvalidRequest("the CSR is not signed by the key that it is for")
    if names and names != [x509.UniformResourceIdentifier(str(identity))]:
        raise InvalidRequest(f"the CSR names something other than {identity}")
    return key


def _requested_names(csr: x509.CertificateSigningRequest) -> list[x509.GeneralName]:
    try:
        return list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
