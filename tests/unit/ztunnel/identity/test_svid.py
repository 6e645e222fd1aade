"""What of a CA's answer is kept: the certificate that was asked for, for our key, with a whole path to its root."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.identity import Identity
from tests.support.pki import Authority, pem
from ztunnel.identity.svid import BadCertificate, accept, make_request

WEB = Identity("cluster.local", "shop", "web")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Path:
    """A root, an intermediate below it, and a leaf below that for a key of ours."""

    def __init__(self, intermediate_life: timedelta = 100 * HOUR) -> None:
        self.root = Authority("the root", NOW)
        self.middle = Authority("the intermediate", NOW)
        self.middle.certificate = self.root.below(self.middle, NOW + intermediate_life)
        self.key = ec.generate_private_key(ec.SECP256R1())

    def leaf(self, *uris: str, life: timedelta = 24 * HOUR) -> x509.Certificate:
        return self.middle.leaf(*(uris or (str(WEB),)), key=self.key.public_key(), not_after=NOW + life)

    def answer(self, leaf: x509.Certificate) -> list[str]:
        return [pem(leaf), self.middle.pem, self.root.pem]


@pytest.fixture
def path() -> Path:
    return Path()


def test_a_good_answer_is_kept_with_its_path(path: Path) -> None:
    svid = accept(WEB, path.key, path.answer(path.leaf()), NOW)
    assert svid.chain_pem.count("BEGIN CERTIFICATE") == 2
    assert svid.roots_pem == path.root.pem
    assert svid.not_after == NOW + 24 * HOUR


def test_a_certificate_is_as_old_as_the_first_of_its_path_gets() -> None:
    path = Path(intermediate_life=5 * HOUR)
    assert accept(WEB, path.key, path.answer(path.leaf()), NOW).not_after == NOW + 5 * HOUR


def test_a_certificate_for_another_key_is_refused(path: Path) -> None:
    _, other = make_request(WEB)
    with pytest.raises(BadCertificate, match="another key"):
        accept(WEB, other, path.answer(path.leaf()), NOW)


@pytest.mark.parametrize(
    "uris", [("spiffe://cluster.local/ns/shop/sa/other",), (str(WEB), "culvert://node/n"), ("https://web",)]
)
def test_a_certificate_of_somebody_else_is_refused(path: Path, uris: tuple[str, ...]) -> None:
    with pytest.raises(BadCertificate, match=f"asked for was {WEB}"):
        accept(WEB, path.key, path.answer(path.leaf(*uris)), NOW)


def test_an_expired_certificate_is_refused(path: Path) -> None:
    leaf = path.leaf(life=HOUR)
    assert accept(WEB, path.key, path.answer(leaf), NOW + HOUR - timedelta(seconds=1))
    with pytest.raises(BadCertificate, match="expired at 2026-01-01T01:00:00Z"):
        accept(WEB, path.key, path.answer(leaf), NOW + HOUR)


def test_a_path_with_a_gap_is_refused(path: Path) -> None:
    """The intermediate is of the root that came along, and has the right name, but has not signed the leaf."""
    stranger = Path()
    with pytest.raises(BadCertificate, match="not issued by the next of its chain"):
        accept(WEB, path.key, [pem(path.leaf()), stranger.middle.pem, stranger.root.pem], NOW)


def test_a_path_to_another_root_is_refused(path: Path) -> None:
    with pytest.raises(BadCertificate, match="does not chain to a root"):
        accept(WEB, path.key, [pem(path.leaf()), path.middle.pem, Authority("the root", NOW).pem], NOW)


@pytest.mark.parametrize("chain", [[], ["x"], ["x", "y"]])
def test_an_answer_that_is_no_path_is_refused(path: Path, chain: list[str]) -> None:
    with pytest.raises(BadCertificate, match=r"no root|not a certificate"):
        accept(WEB, path.key, chain, NOW)
