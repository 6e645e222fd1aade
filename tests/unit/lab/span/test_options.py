import pytest

from lab.span.options import PORT, Span, endpoint


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("192.0.2.1", ("192.0.2.1", PORT)),
        ("192.0.2.1:8", ("192.0.2.1", 8)),
        ("2001:db8::1", ("2001:db8::1", PORT)),
        ("[2001:db8::1]", ("2001:db8::1", PORT)),
        ("[2001:db8::1]:8", ("2001:db8::1", 8)),
    ],
)
def test_address_with_and_without_port(text, meant):
    assert endpoint(text) == meant


@pytest.mark.parametrize("text", ["", "host", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:x", "0.0.0.0", "::", "224.0.0.1"])
def test_what_is_no_address_of_one_machine_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        endpoint(text)


def test_span_survives_the_way_to_the_supervisor():
    span = Span(join="192.0.2.1", local=("node-b",), token_file="/t")
    assert Span.from_json(span.to_json()) == span
    assert Span.from_json("{}") == Span()
