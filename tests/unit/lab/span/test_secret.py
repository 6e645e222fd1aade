import pytest

from lab import paths
from lab.paths import LabPaths
from lab.span.options import Span
from lab.span.secret import InvalidToken, keep_token, network_id, new_token, parse_token


def test_new_tokens_differ_and_are_read_back():
    one, other = new_token(), new_token()
    assert len(parse_token(one)) == 32
    assert parse_token(one) == parse_token(f" {one}\n")
    assert parse_token(one) != parse_token(other)


@pytest.mark.parametrize(
    "text", ["", "secret", "culvert-lab-1.", "culvert-lab-1.short", "A" * 43, "culvert-lab-1." + "A" * 44, "é"]
)
def test_weak_or_foreign_text_is_refused_without_showing_it(text):
    with pytest.raises(InvalidToken) as fault:
        parse_token(text)
    assert not text or text == "culvert-lab-1." or text not in str(fault.value)


def test_networks_of_two_labs_differ_and_fit():
    ids = {network_id(parse_token(new_token())) for _ in range(20)}
    assert len(ids) > 15
    assert all(0 < number < 1 << 24 for number in ids)


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "LABS", tmp_path)
    own = LabPaths("t")
    own.root.mkdir()
    return own


def test_token_is_made_once_and_for_root_alone(own):
    secret = keep_token(own, Span())
    assert parse_token(own.token.read_text()) == secret
    assert own.token.stat().st_mode & 0o777 == 0o600


def test_given_token_is_taken(own, tmp_path):
    given = tmp_path / "given"
    given.write_text(new_token() + "\n")
    assert keep_token(own, Span(token_file=str(given))) == parse_token(given.read_text())
    assert own.token.read_text() == given.read_text()
