"""Certificates for tests: an authority that signs whatever a case needs, right or wrong."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True, slots=True)
class Credential:
    """What an end shows and trusts, in PEM."""

    chain: str
    key: str
    roots: str


def spiffe(account: str, domain: str = "cluster.local") -> str:
    return f"spiffe://{domain}/ns/default/sa/{account}"


class Authority:
    """A root that signs. Two of one name are told apart by their key only."""

    def __init__(self, name: str = "test root", clock: datetime | None = None) -> None:
        self.now = clock or datetime.now(UTC)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        self.certificate = self._sign(
            self.subject,
            self.key.public_key(),
            x509.BasicConstraints(ca=True, path_length=None),
            self.now - timedelta(hours=1),
            self.now + timedelta(days=3650),
        )

    def renewed_root(self) -> str:
        """Another certificate of the same root: the key and the name stay."""
        again = self._sign(
            self.subject,
            self.key.public_key(),
            x509.BasicConstraints(ca=True, path_length=None),
            self.now - timedelta(hours=1),
            self.now + timedelta(days=7300),
        )
        return pem(again)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        constraints: x509.BasicConstraints,
        not_before: datetime,
        not_after: datetime,
        *extensions: x509.ExtensionType,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(constraints, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.SubjectAlternativeName))
        return builder.sign(self.key, hashes.SHA256())

    def leaf(
        self,
        *uris: str,
        key: ec.EllipticCurvePublicKey | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        usages: tuple[x509.ObjectIdentifier, ...] = USAGES,
    ) -> x509.Certificate:
        """A leaf for these URIs, valid from an hour ago for a day unless told otherwise."""
        return self._sign(
            x509.Name([]),
            key or ec.generate_private_key(ec.SECP256R1()).public_key(),
            x509.BasicConstraints(ca=False, path_length=None),
            not_before or self.now - timedelta(hours=1),
            not_after or self.now + timedelta(days=1),
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]),
            x509.ExtendedKeyUsage(usages),
        )

    def below(self, lower: "Authority", not_after: datetime) -> x509.Certificate:
        """A certificate with which another authority signs for this one."""
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        return self._sign(lower.subject, lower.key.public_key(), constraints, self.now - timedelta(hours=1), not_after)

    def issue(
        self,
        *uris: str,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        usages: tuple[x509.ObjectIdentifier, ...] = USAGES,
        trusts: "Authority | None" = None,
    ) -> Credential:
        """A leaf with its key, and the roots that its owner trusts: this one's unless another's are asked for."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.leaf(*uris, key=key.public_key(), not_before=not_before, not_after=not_after, usages=usages)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return Credential(pem(leaf), private, (trusts or self).pem)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def same_key(certificate: x509.Certificate, csr_pem: str) -> bool:
    """Whether a certificate is for the key that signed a request."""
    request = x509.load_pem_x509_csr(csr_pem.encode())
    encoding = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*encoding) == request.public_key().public_bytes(*encoding)


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *names: x509.GeneralName, subject: str = "") -> str:
    """A request for a certificate with these names."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
