"""Keys and certificates: making, reading, writing. The only module that talks to `cryptography` about files."""

import datetime
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

IssuerKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

# How far a node's clock may be behind ours before a fresh certificate looks unborn to it.
BACKDATE = datetime.timedelta(minutes=2)

_RSA_BITS = 2048
_EXTENDED_USAGE = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


class InvalidKey(ValueError):
    """A key or certificate that this mesh does not take."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: IssuerKey) -> bytes:
    """A private key in PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def load_key(pem: bytes) -> IssuerKey:
    """A private key; raises InvalidKey."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidKey(f"not a private key in PEM without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise InvalidKey("neither an ECDSA nor an RSA key")
    return key


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM file; raises InvalidKey if there are none."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidKey(f"not certificates in PEM: {error}") from error


def accept_public_key(key: object) -> PublicKey:
    """A key that a certificate may be made for: P-256, P-384, RSA from 2048 bits; raises InvalidKey."""
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS:
        return key
    raise InvalidKey(f"the key is none of ECDSA P-256, ECDSA P-384, RSA of {_RSA_BITS} bits or more")


def same_key(certificate: x509.Certificate, key: IssuerKey) -> bool:
    """The certificate is for this key."""
    return _spki(certificate.public_key()) == _spki(key.public_key())


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """The issuer's name and key stand behind a certificate."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, in hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def is_authority(certificate: x509.Certificate) -> bool:
    """The certificate may sign others."""
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False


def key_identifiers(certificate: x509.Certificate) -> tuple[bytes | None, bytes | None]:
    """The identifiers of its own key and of its issuer's, as far as it names them."""
    own = above = None
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectKeyIdentifier):
            own = extension.value.digest
        elif isinstance(extension.value, x509.AuthorityKeyIdentifier):
            above = extension.value.key_identifier
    return own, above


def make_root(key: IssuerKey, name: str, now: datetime.datetime, lifetime: datetime.timedelta) -> x509.Certificate:
    """A self-signed authority."""
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    builder = _builder(subject, subject, key.public_key(), now, now + lifetime)
    usage = _usage(signs_certificates=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256())


def make_leaf(
    key: PublicKey,
    names: Sequence[x509.GeneralName],
    issuer: x509.Certificate,
    issuer_key: IssuerKey,
    now: datetime.datetime,
    until: datetime.datetime,
) -> x509.Certificate:
    """A certificate for a key under some names, and nothing else: the subject stays empty."""
    builder = _builder(x509.Name([]), issuer.subject, key, now, until)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(_EXTENDED_USAGE), critical=False)
    # Critical because the subject is empty (RFC 5280, 4.2.1.6).
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    builder = builder.add_extension(_authority_key_identifier(issuer), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def uris(names: Iterable[str]) -> list[x509.GeneralName]:
    """URI names."""
    return [x509.UniformResourceIdentifier(name) for name in names]


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, now: datetime.datetime, until: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(accept_public_key(issuer.public_key()))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _spki(key: object) -> bytes:
    return accept_public_key(key).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
