"""Signing: exactly the identity asked for, never longer than the issuer, and nothing for a hostile request."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from controller.ca.authority import MAX_CSR_BYTES, Authority, InvalidRequest, IssuerExpired, Lifetimes
from controller.ca.issuer import load_or_create_root
from mesh.identity import Identity
from tests.support.pki import csr, p256

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
WEB = Identity("cluster.local", "shop", "web")


class Clock:
    now = NOW

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority(load_or_create_root(tmp_path, "cluster.local", NOW), Lifetimes(24 * HOUR, 48 * HOUR), clock)


def test_leaf_has_the_identity_and_nothing_else_of_the_request(authority: Authority) -> None:
    key = p256()
    name = x509.UniformResourceIdentifier(str(WEB))
    issued = authority.sign_request(csr(key, name, subject="admin"), WEB, 0)
    leaf = issued.certificate
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [name]
    assert len(leaf.subject) == 0
    assert leaf.public_key() == key.public_key()
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(authority.issuer.certificate)
    assert len(issued.pem_chain) == 2


@pytest.mark.parametrize(("asked_s", "lifetime"), [(0, 24 * HOUR), (3600, HOUR), (10**12, 48 * HOUR), (-5, 24 * HOUR)])
def test_lifetimes(authority: Authority, asked_s: int, lifetime: datetime.timedelta) -> None:
    leaf = authority.sign_request(csr(p256()), WEB, asked_s).certificate
    assert leaf.not_valid_after_utc == NOW + lifetime
    assert leaf.not_valid_before_utc == NOW - datetime.timedelta(minutes=2)


def test_nobody_gets_more_than_the_longest_lifetime(authority: Authority) -> None:
    issued = authority.sign(p256().public_key(), [x509.UniformResourceIdentifier(str(WEB))], 1000 * HOUR)
    assert issued.certificate.not_valid_after_utc == NOW + 48 * HOUR


def test_a_request_that_is_too_long_is_not_even_read(authority: Authority) -> None:
    good = csr(p256())
    padded = good + "\n" * (MAX_CSR_BYTES + 1 - len(good))
    assert authority.sign_request(padded[:-1], WEB, 0)
    with pytest.raises(InvalidRequest, match=f"more than {MAX_CSR_BYTES} bytes"):
        authority.sign_request(padded, WEB, 0)


def test_a_leaf_never_outlives_its_issuer(authority: Authority, clock: Clock) -> None:
    end = authority.issuer.certificate.not_valid_after_utc
    clock.now = end - HOUR
    assert authority.sign_request(csr(p256()), WEB, 0).certificate.not_valid_after_utc == end
    clock.now = end
    with pytest.raises(IssuerExpired):
        authority.sign_request(csr(p256()), WEB, 0)


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_other_keys_that_are_taken(authority: Authority, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    assert authority.sign_request(csr(key), WEB, 0).certificate.public_key() == key.public_key()


def _tampered() -> str:
    good = x509.load_pem_x509_csr(csr(p256()).encode())
    der = bytearray(good.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    "request_pem",
    [
        "",
        "nonsense",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
        "x" * (MAX_CSR_BYTES + 1),
        csr(ec.generate_private_key(ec.SECP521R1())),
        csr(rsa.generate_private_key(65537, 1024)),
        csr(p256(), x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/other")),
        csr(p256(), x509.UniformResourceIdentifier(str(WEB)), x509.UniformResourceIdentifier("culvert://node/n")),
        csr(p256(), x509.DNSName("web.shop")),
        _tampered(),
    ],
)
def test_requests_that_are_refused(authority: Authority, request_pem: str) -> None:
    with pytest.raises(InvalidRequest):
        authority.sign_request(request_pem, WEB, 0)
