import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity import Identity, InvalidIdentity

segments = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?", fullmatch=True)


@given(trust_domain=segments, namespace=segments, service_account=segments)
def test_text_form_parses_back(trust_domain: str, namespace: str, service_account: str) -> None:
    identity = Identity(trust_domain, namespace, service_account)
    assert Identity.parse(str(identity)) == identity


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/a/sa/",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local/ns/a/sa/b/more",
        "spiffe://cluster.local/ns/a/sa/b?query",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe:/cluster.local/ns/a/sa/b",
        "https://cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/sa/b/ns/a",
        "spiffe://cluster.local/ns/a/sa/b\n",
        "spiffe://cluster.local/ns/a\0/sa/b",
    ],
)
def test_anything_but_the_workload_form_is_no_identity(text: str) -> None:
    with pytest.raises(InvalidIdentity):
        Identity.parse(text)


def test_an_identity_too_long_for_the_engine_is_refused() -> None:
    with pytest.raises(InvalidIdentity, match="longer"):
        Identity("t" * 255, "n" * 60, "s" * 250)


def test_a_refusal_is_short_however_long_the_text() -> None:
    with pytest.raises(InvalidIdentity) as caught:
        Identity.parse("x" * 1_000_000)
    assert len(str(caught.value)) < 200
