from lab.backoff import Backoff


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_first_death_is_followed_at_once_and_later_ones_wait_longer():
    clock = Clock()
    backoff = Backoff(clock, first_s=0.25, limit_s=1.0)
    waits = []
    for _ in range(5):
        backoff.started()
        waits.append(backoff.died())
    assert waits == [0, 0.25, 0.5, 1.0, 1.0]


def test_good_while_resets():
    clock = Clock()
    backoff = Backoff(clock, good_s=10)
    for _ in range(4):
        backoff.started()
        backoff.died()
    backoff.started()
    clock.now += 10
    assert backoff.died() == 0
