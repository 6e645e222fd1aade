"""Issuers for tests: roots and intermediates as an operator makes them."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from controller.ca import keys
from controller.ca.issuer import Issuer, new_root

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def root(now: datetime.datetime = NOW) -> Issuer:
    return new_root("cluster.local", now)


def intermediate(
    above: Issuer,
    *more_roots: x509.Certificate,
    now: datetime.datetime = NOW,
    life: datetime.timedelta = 365 * DAY,
    names_its_issuers_key: bool = True,
) -> Issuer:
    """One that a root has signed; its owner trusts that root, and others if told so."""
    key = keys.new_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "intermediate")]))
        .issuer_name(above.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=2))
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names_its_issuers_key:
        own = above.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        builder = builder.add_extension(identifier, critical=False)
    certificate = builder.sign(above.key, hashes.SHA256())
    return Issuer(certificate, key, (certificate,), (above.certificate, *more_roots))


def files(issuer: Issuer) -> dict[str, bytes]:
    """The contents of `cacerts`."""
    return {
        "ca-cert.pem": keys.certificate_pem(issuer.certificate),
        "ca-key.pem": keys.key_pem(issuer.key),
        "cert-chain.pem": b"".join(map(keys.certificate_pem, issuer.path)),
        "root-cert.pem": issuer.roots_pem,
    }
