import pytest

from cli.checks.before import OLDEST_KERNEL, numbers, some


@pytest.mark.parametrize(
    ("text", "found"),
    [("6.1.0-26-amd64", (6, 1)), ("6.10", (6, 10)), ("1.30+", (1, 30)), ("", ()), ("unknown", ()), ("7", ())],
)
def test_a_version_is_its_first_two_numbers(text, found):
    assert numbers(text) == found


def test_what_is_no_version_counts_as_too_old():
    assert numbers("unknown") < OLDEST_KERNEL < numbers("6.10.3")


def test_a_long_list_stays_readable():
    assert some([str(number) for number in range(8)]) == "0, 1, 2, 3, 4 and 3 more"
    assert some(["a", "b"]) == "a, b"
