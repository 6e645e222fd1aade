"""Numbers: rising, never shared, and found again by address."""

import pytest

from ztunnel import numbers as module
from ztunnel.numbers import NoNumberLeft, Numbers

A, B = b"a" * 16, b"b" * 16


def test_numbers_rise_and_are_never_zero() -> None:
    numbers = Numbers()
    assert [numbers.take() for _ in range(3)] == [1, 2, 3]


def test_a_number_given_back_is_not_the_next_one() -> None:
    numbers = Numbers()
    numbers.give_back(numbers.take())
    assert numbers.take() == 2


def test_restored_numbers_go_to_their_address_once() -> None:
    numbers = Numbers({A: 5})
    assert numbers.take((B, A)) == 5
    assert numbers.take((A,)) == 6


def test_two_addresses_of_one_number_give_it_once() -> None:
    numbers = Numbers({A: 5, B: 5})
    assert numbers.take((A,)) == 5
    assert numbers.take((B,)) == 6


def test_nonsense_in_the_map_is_ignored() -> None:
    assert Numbers({A: 0, B: 2**33}).take((A, B)) == 1


def test_after_the_last_number_free_ones_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST", 3)
    numbers = Numbers()
    taken = [numbers.take() for _ in range(3)]
    with pytest.raises(NoNumberLeft):
        numbers.take()
    numbers.give_back(taken[1])
    assert numbers.take() == 2
