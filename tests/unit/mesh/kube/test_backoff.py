"""Waits between tries: longer each time, bounded, never shorter than asked."""

from random import Random

from mesh.kube.backoff import Backoff


def test_waits_double_up_to_a_bound_and_begin_again() -> None:
    backoff = Backoff(1.0, 8.0, Random(1))
    waits = [backoff.next_s() for _ in range(6)]
    for wait, most in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= wait <= most
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_what_the_server_asks_for_is_the_least() -> None:
    assert Backoff(0.1, 1.0, Random(1)).next_s(5.0) == 5.0


def test_two_clients_do_not_come_back_in_one_moment() -> None:
    waits = {Backoff(1.0, 8.0, Random(seed)).next_s() for seed in range(20)}
    assert len(waits) == 20
