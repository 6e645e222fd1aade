"""A certificate authority for tests: SPIFFE leaves as the mesh issues them, and wrong ones on request."""

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A leaf with its chain, its key and the roots that it trusts, in PEM."""

    chain: bytes
    key: bytes
    roots: bytes


def spiffe(account: str, domain: str = "cluster.local", namespace: str = "default") -> str:
    return f"spiffe://{domain}/ns/{namespace}/sa/{account}"


class Authority:
    """One root. Two authorities have the same name, so that only the key tells them apart."""

    def __init__(self, name: str = "cluster.local") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        self._root = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1))
            .not_valid_after(NOW + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def roots(self) -> bytes:
        return self._root.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        *uris: str,
        valid: dt.timedelta = dt.timedelta(hours=1),
        usages: tuple[x509.ObjectIdentifier, ...] = (
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ),
        roots: bytes | None = None,
    ) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(hours=12))
            .not_valid_after(NOW + valid)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Credentials(
            chain=leaf.public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            roots=roots or self.roots,
        )
