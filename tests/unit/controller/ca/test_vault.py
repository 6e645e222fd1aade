"""Secrets as people and other tools leave them: what is wrong is named by its key, what is missing has a meaning."""

import base64
from typing import Any

import pytest

from controller.ca import keys, vault
from controller.ca.issuer import IssuerUnavailable
from controller.ca.trust import Wish, first
from tests.unit.controller.ca.hierarchy import DAY, NOW, files, intermediate, root


def secret(contents: dict[str, bytes]) -> dict[str, Any]:
    return {"data": {name: base64.b64encode(content).decode() for name, content in contents.items()}}


def test_an_operators_issuer_is_read_in_istios_layout() -> None:
    plugged = intermediate(root())
    read = vault.decode_plugged(secret(files(plugged)), NOW)
    assert (read.certificate, read.intermediates, read.roots) == (
        plugged.certificate,
        (plugged.certificate,),
        plugged.roots,
    )


OTHER = files(intermediate(root()))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ca-cert.pem": None}, "ca-cert.pem is missing"),
        ({"ca-key.pem": None}, "ca-key.pem is missing"),
        ({"ca-cert.pem": b"nonsense"}, "ca-cert.pem: not certificates"),
        ({"ca-key.pem": b"nonsense"}, "ca-key.pem: not a private key"),
        ({"ca-key.pem": OTHER["ca-key.pem"]}, "ca-key.pem is not the key of ca-cert.pem"),
        ({"root-cert.pem": b""}, "root-cert.pem: not certificates"),
        ({"root-cert.pem": OTHER["root-cert.pem"]}, "not signed by any certificate of root-cert.pem"),
        ({"cert-chain.pem": b"x"}, "cert-chain.pem: not certificates"),
        ({"cert-chain.pem": OTHER["cert-chain.pem"]}, "next in cert-chain.pem"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(changes: dict[str, bytes | None], says: str) -> None:
    contents = {**files(intermediate(root())), **changes}
    with pytest.raises(IssuerUnavailable, match=says) as caught:
        vault.decode_plugged(secret({name: one for name, one in contents.items() if one is not None}), NOW)
    assert "Secret cacerts" in str(caught.value)


def test_an_expired_issuer_of_an_operator_is_refused() -> None:
    with pytest.raises(IssuerUnavailable, match="expired"):
        vault.decode_plugged(secret(files(intermediate(root(), life=DAY))), NOW + DAY)


def test_what_is_not_base64_is_named() -> None:
    with pytest.raises(IssuerUnavailable, match=r"ca-key\.pem: not base64"):
        vault.decode_plugged({"data": {"ca-key.pem": "&&"}}, NOW)


def test_a_secret_in_the_plain_layout_is_a_state_in_which_nothing_changes() -> None:
    own = root()
    trust = vault.decode(secret({"ca-cert.pem": own.roots_pem, "ca-key.pem": keys.key_pem(own.key)}))
    assert (trust.phase, trust.is_own, trust.certificates) == ("steady", True, (own.certificate,))
    assert trust.roots[0].since <= NOW


@pytest.mark.parametrize(
    ("name", "content"),
    [("state.json", b"{"), ("state.json", b"[]"), ("state.json", b'{"roots": 1}'), ("root-cert.pem", b"x")],
)
def test_a_broken_state_is_named(name: str, content: bytes) -> None:
    kept = {key: base64.b64decode(text) for key, text in vault.encode(first("cluster.local", Wish(), NOW)).items()}
    with pytest.raises(IssuerUnavailable, match=name):
        vault.decode(secret({**kept, name: content}))


def test_what_is_kept_can_be_used_as_cacerts() -> None:
    plugged = intermediate(root())
    kept = vault.encode(first("cluster.local", Wish(plugged), NOW))
    assert vault.decode_plugged({"data": kept}, NOW).certificate == plugged.certificate
