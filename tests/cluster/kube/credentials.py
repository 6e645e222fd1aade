"""What the parts of a cluster show to each other: one CA, serving certificates, tokens, kubeconfigs."""

import datetime
import json
import secrets
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from tests.cluster.kube import place

LIFETIME = datetime.timedelta(days=2)


class Credentials:
    """Files under `<state>/pki`, made anew for each start; kubeconfigs beside that folder."""

    def __init__(self, state: Path, server: str, nodes: Sequence[str] = ()) -> None:
        self.state = state
        self.folder = state / "pki"
        self._server = server
        self._nodes = nodes

    def make(self) -> None:
        """Make everything: CA, serving certificate, service account key, tokens, kubeconfigs."""
        self.folder.mkdir(mode=0o700, parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        authority = self._sign("kube-ca", key, None, [])
        self._write("ca.crt", authority.public_bytes(serialization.Encoding.PEM))
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign("apiserver", own, (authority, key), self._names())
        self._write("apiserver.crt", certificate.public_bytes(serialization.Encoding.PEM))
        self._write("apiserver.key", _pem(own))
        # The token controller signs with RS256 or ES256; RSA is what clusters have.
        self._write("sa.key", _pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
        self._make_tokens()

    def _names(self) -> list[x509.GeneralName]:
        addresses = ["127.0.0.1", "::1", place.API_SERVICE, place.CONTROL_PLANE4, place.CONTROL_PLANE6]
        names: list[x509.GeneralName] = [x509.IPAddress(ip_address(str(address))) for address in addresses]
        return [*names, x509.DNSName("kubernetes.default.svc"), x509.DNSName("localhost")]

    def _make_tokens(self) -> None:
        """Administrators, control plane and nodes are known by static tokens."""
        users = {"admin": ("admin", "system:masters")}
        users |= {node: (f"system:node:{node}", "system:nodes") for node in self._nodes}
        lines = []
        for name, (user, group) in users.items():
            token = secrets.token_hex(16)
            lines.append(f"{token},{user},{user},{group}\n")
            path = self.state / f"{name}.kubeconfig"
            path.write_text(json.dumps(self._kubeconfig(token)))
            path.chmod(0o600)
        self._write("tokens.csv", "".join(lines).encode())

    def _kubeconfig(self, token: str) -> dict[str, object]:
        cluster = {"server": self._server, "certificate-authority": str(self.folder / "ca.crt")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "kube", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "default", "context": {"cluster": "kube", "user": "user"}}],
            "current-context": "default",
        }

    @staticmethod
    def _sign(
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
        names: list[x509.GeneralName],
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(issuer[1] if issuer else key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> None:
        path: Path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
