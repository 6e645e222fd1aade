"""The secret that the machines of a lab share, and the TLS that it gives them.

An authority's key is derived from the secret, so that every holder can issue itself a certificate and check that of the
other side; the secret itself never travels. Leaf keys live in memory only. Who does not hold the secret passes no
handshake on either side. A secret is 256 random bits: the authority's public key would let a weak one be guessed.
"""

import base64
import binascii
import datetime
import hashlib
import os
import secrets
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab.paths import LabPaths
from lab.span.options import Span

PREFIX = "culvert-lab-1."
SECRET_BYTES = 32
HOME = "home.lab.culvert"
JOINED = "joined.lab.culvert"

# The order of P-256's group; 16 bytes more than it needs make the remainder's bias vanish (FIPS 186-5, A.2.1).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_KEY_BYTES = 48
# Certificates are made anew by each process; a machine whose clock is a day off still joins.
_LEEWAY = datetime.timedelta(days=2)
_LIFE = datetime.timedelta(days=3650)


class InvalidToken(ValueError):
    """A text that is no token of a lab."""


def new_token() -> str:
    """A fresh secret, as people pass it on."""
    return PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()


def parse_token(text: str) -> bytes:
    """The secret of a token; raises InvalidToken, which never holds the text."""
    token = text.strip()
    try:
        secret = base64.b64decode(token.removeprefix(PREFIX) + "=", altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        secret = b""
    if not token.startswith(PREFIX) or len(secret) != SECRET_BYTES:
        raise InvalidToken(f"a token is {PREFIX!r} and {SECRET_BYTES} random bytes as URL-safe base64 without padding")
    return secret


def keep_token(paths: LabPaths, span: Span) -> bytes:
    """The secret of the given token file, else a new one; kept with the lab for `lab token`. Raises InvalidToken."""
    token = Path(span.token_file).read_text() if span.token_file else new_token()
    secret = parse_token(token)
    fd = os.open(paths.token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(token.strip() + "\n")
    return secret


def network_id(secret: bytes) -> int:
    """The VXLAN network identifier: labs that share a network do not meet."""
    return int.from_bytes(hashlib.sha256(b"culvert lab vxlan\0" + secret).digest()[:3], "big") or 1


def home_context(secret: bytes) -> ssl.SSLContext:
    """TLS for the home: asks for a certificate of a joined machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _furnish(context, secret, HOME, ExtendedKeyUsageOID.SERVER_AUTH)


def joined_context(secret: bytes) -> ssl.SSLContext:
    """TLS for a joined machine: asks for the certificate of a home, by the name HOME."""
    return _furnish(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), secret, JOINED, ExtendedKeyUsageOID.CLIENT_AUTH)


def _furnish(context: ssl.SSLContext, secret: bytes, name: str, usage: x509.ObjectIdentifier) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    authority = _authority_key(secret)
    now = datetime.datetime.now(datetime.UTC)
    issuer = _certificate(authority, authority.public_key(), "lab.culvert", now, None)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _certificate(authority, key.public_key(), name, now, usage)
    context.load_verify_locations(cadata=_pem(issuer).decode())
    _load_leaf(context, _pem(leaf) + _key_pem(key))
    return context


def _authority_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    material = HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=b"culvert lab authority 1").derive(secret)
    return ec.derive_private_key(int.from_bytes(material, "big") % (_ORDER - 1) + 1, ec.SECP256R1())


def _certificate(
    authority: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    now: datetime.datetime,
    usage: x509.ObjectIdentifier | None,
) -> x509.Certificate:
    """Of the authority itself when `usage` is None, else of one of the two roles."""
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab.culvert")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    if usage is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    return builder.sign(authority, hashes.SHA256())


def _load_leaf(context: ssl.SSLContext, pem: bytes) -> None:
    """By way of memory: `ssl` takes files only, and a key has no business on a disk."""
    fd = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
