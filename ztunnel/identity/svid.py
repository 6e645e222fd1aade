"""A workload's certificate and key (SVID): made from a CSR, checked when it comes back.

The request is an ECDSA P-256 PKCS#10 with an empty subject and one critical SAN, the SPIFFE id, as Istio's CA expects
it. What comes back is accepted only if the leaf carries exactly that id and our key, and chains to the roots that came
with it.
"""

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.identity import Identity


class BadCertificate(Exception):
    """What the CA returned cannot be used; the message names what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Svid:
    """Certificate chain, key and roots of one identity. `key_pem` is a secret that only the engine gets."""

    identity: Identity
    chain_pem: str
    roots_pem: str
    key_pem: str
    not_before: datetime
    not_after: datetime

    @property
    def renew_at(self) -> datetime:
        """Half of the lifetime: a failed renewal then has the other half to be tried again."""
        return self.not_before + (self.not_after - self.not_before) / 2

    def __repr__(self) -> str:
        return f"Svid({self.identity}, until {self.not_after:%Y-%m-%dT%H:%M:%SZ})"


def read_roots(pem: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a bundle, each once; raises BadCertificate if there are none."""
    try:
        return tuple(dict.fromkeys(x509.load_pem_x509_certificates(pem.encode())))
    except ValueError as error:
        raise BadCertificate(f"roots that cannot be read: {error}") from error


def join_roots(*bundles: str) -> str:
    """Several bundles as one, each certificate once."""
    found = dict.fromkeys(root for pem in bundles if pem for root in read_roots(pem))
    return "".join(root.public_bytes(Encoding.PEM).decode() for root in found)


def leads_to(chain_pem: str, roots_pem: str) -> bool:
    """The chain ends below one of these roots."""
    last = x509.load_pem_x509_certificates(chain_pem.encode())[-1]
    return any(_is_issued(last, root) for root in read_roots(roots_pem))


def make_request(identity: Identity) -> tuple[str, ec.EllipticCurvePrivateKey]:
    """A CSR in PEM, and the new key that signed it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(name, critical=True).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode(), key


def accept(identity: Identity, key: ec.EllipticCurvePrivateKey, chain: list[str], now: datetime) -> Svid:
    """Check an answer `[leaf, intermediates..., roots]` and keep it; raises BadCertificate."""
    if len(chain) < 2:
        raise BadCertificate("the CA returned no root beside the certificate")
    try:
        path = [cert for pem in chain[:-1] for cert in x509.load_pem_x509_certificates(pem.encode())]
        roots = x509.load_pem_x509_certificates(chain[-1].encode())
    except ValueError as error:
        raise BadCertificate(f"the CA returned something that is not a certificate: {error}") from error
    leaf = path[0]
    _check_leaf(leaf, identity, key, now)
    _check_path(path, roots)
    return Svid(
        identity=identity,
        chain_pem="".join(cert.public_bytes(Encoding.PEM).decode() for cert in path),
        roots_pem="".join(cert.public_bytes(Encoding.PEM).decode() for cert in roots),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        not_before=leaf.not_valid_before_utc,
        not_after=min(cert.not_valid_after_utc for cert in path),
    )


def _check_leaf(leaf: x509.Certificate, identity: Identity, key: ec.EllipticCurvePrivateKey, now: datetime) -> None:
    if leaf.public_key() != key.public_key():
        raise BadCertificate("the certificate is for another key")
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise BadCertificate("the certificate has no subject alternative name") from None
    ids = names.get_values_for_type(x509.UniformResourceIdentifier)
    if ids != [str(identity)]:
        raise BadCertificate(f"the certificate is for {', '.join(ids) or 'nobody'}, asked for was {identity}")
    if leaf.not_valid_after_utc <= now:
        raise BadCertificate(f"the certificate expired at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def _check_path(path: list[x509.Certificate], roots: list[x509.Certificate]) -> None:
    for child, issuer in itertools.pairwise(path):
        _check_issued(child, issuer)
    if any(_is_issued(path[-1], root) for root in roots):
        return
    raise BadCertificate("the certificate does not chain to a root that came with it")


def _is_issued(child: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _check_issued(child: x509.Certificate, issuer: x509.Certificate) -> None:
    if not _is_issued(child, issuer):
        raise BadCertificate(f"{child.subject.rfc4514_string()} is not issued by the next of its chain")


def now_utc() -> datetime:
    """The wall clock; passed as a parameter wherever a decision depends on it."""
    return datetime.now(UTC)
