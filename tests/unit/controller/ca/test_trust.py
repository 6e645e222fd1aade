"""Rotation as states: nothing signs before its root is known, nothing is dropped while a leaf may live."""

import datetime
from dataclasses import replace

import pytest

from controller.ca import keys, vault
from controller.ca.issuer import Issuer
from controller.ca.trust import Overlap, Trust, TrustedRoot, Wish, advance, ambiguity, first
from tests.unit.controller.ca.hierarchy import DAY, NOW, intermediate, root

OVERLAP = Overlap(distribution=DAY, retirement=2 * DAY)
HOUR = datetime.timedelta(hours=1)


def step(trust: Trust, wish: Wish, at: datetime.datetime, *, is_heard: bool = True) -> Trust:
    following = advance(trust, wish, OVERLAP, "cluster.local", at, is_heard=is_heard)
    again = advance(following, wish, OVERLAP, "cluster.local", at, is_heard=False)
    assert vault.encode(again) == vault.encode(following), "a state that was reached at a time is reached once"
    return following


def settled(issuer: Issuer, *, is_own: bool) -> Trust:
    """In force for long."""
    return Trust(issuer, tuple(TrustedRoot(one, NOW - 30 * DAY) for one in issuer.roots), is_own=is_own)


def test_the_first_issuer_signs_at_once() -> None:
    own = first("cluster.local", Wish(), NOW)
    assert (own.is_own, own.phase, own.certificates) == (True, "steady", own.issuer.roots)
    plugged = intermediate(root())
    assert first("cluster.local", Wish(plugged), NOW).issuer is plugged


def test_nothing_changes_without_a_wish() -> None:
    trust = settled(root(), is_own=True)
    assert step(trust, Wish(), NOW + 365 * DAY) == trust


def test_a_new_root_of_our_own_is_distributed_then_signs_then_the_old_one_retires() -> None:
    trust = settled(root(), is_own=True)
    old, wish = trust.issuer, Wish(rotation="2026")
    trust = step(trust, wish, NOW)
    assert trust.phase == "distributing"
    assert trust.issuer is old
    assert trust.next is not None
    new = trust.next
    assert trust.certificates == (old.certificate, new.certificate)

    trust = step(trust, wish, NOW + DAY - HOUR)
    assert trust.issuer is old
    trust = step(trust, wish, NOW + DAY, is_heard=False)
    assert trust.issuer is old, "somebody has not heard of the new root yet"
    waiting = step(trust, wish, NOW + 2 * DAY - HOUR, is_heard=False)
    assert waiting.issuer is old
    assert step(waiting, wish, NOW + 2 * DAY, is_heard=False).issuer is new, "nobody is waited for for ever"
    trust = step(trust, wish, NOW + DAY + HOUR)
    assert (trust.issuer, trust.next, trust.phase) == (new, None, "retiring")
    assert trust.certificates == (old.certificate, new.certificate)

    trust = step(trust, wish, NOW + 3 * DAY)
    assert old.certificate in trust.certificates
    trust = step(trust, wish, NOW + 3 * DAY + HOUR)
    assert (trust.certificates, trust.phase) == ((new.certificate,), "steady")
    assert step(trust, wish, NOW + 300 * DAY) == trust


def test_our_own_root_is_replaced_before_it_ends() -> None:
    trust = settled(root(), is_own=True)
    end = trust.issuer.expires
    assert step(trust, Wish(), end - 740 * DAY) == trust
    assert step(trust, Wish(), end - 720 * DAY).phase == "distributing"


def test_a_new_intermediate_under_a_root_that_is_trusted_signs_at_once() -> None:
    above = root()
    trust = settled(intermediate(above), is_own=False)
    renewed = intermediate(above)
    trust = step(trust, Wish(renewed), NOW)
    assert (trust.issuer, trust.phase) == (renewed, "steady")


def test_an_intermediate_of_a_new_root_waits_for_that_root_and_the_old_one_stays() -> None:
    trust = settled(intermediate(root()), is_own=False)
    old, plugged = trust.issuer, intermediate(root())
    trust = step(trust, Wish(plugged), NOW)
    assert (trust.issuer, trust.next) == (old, plugged)
    assert set(trust.certificates) == {*old.roots, *plugged.roots}
    trust = step(trust, Wish(plugged), NOW + DAY)
    assert (trust.issuer, trust.phase) == (plugged, "retiring")
    assert set(trust.certificates) == {*old.roots, *plugged.roots}
    assert step(trust, Wish(plugged), NOW + 4 * DAY).certificates == plugged.roots


def test_from_our_own_root_to_an_operators() -> None:
    plugged = intermediate(root())
    trust = step(settled(root(), is_own=True), Wish(plugged), NOW)
    trust = step(trust, Wish(plugged), NOW + DAY)
    assert (trust.issuer, trust.is_own) == (plugged, False)


def test_a_root_that_an_operator_distributes_early_is_trusted_and_counts_from_then() -> None:
    above, coming = root(), root()
    trust = settled(intermediate(above), is_own=False)
    prepared = replace(trust.issuer, roots=(above.certificate, coming.certificate))
    trust = step(trust, Wish(prepared), NOW)
    assert (trust.phase, set(trust.certificates)) == ("steady", {above.certificate, coming.certificate})
    final = intermediate(coming, above.certificate)
    assert step(trust, Wish(final), NOW + DAY).issuer is final


def test_an_issuer_that_is_withdrawn_before_it_signs_was_never_there() -> None:
    own = settled(root(), is_own=True)
    trust = step(own, Wish(intermediate(root())), NOW)
    trust = step(trust, Wish(), NOW + HOUR)
    assert (trust.issuer, trust.next) == (own.issuer, None)
    assert step(trust, Wish(), NOW + 3 * DAY).certificates == own.certificates


def test_an_operators_issuer_that_vanishes_stays_in_force() -> None:
    trust = settled(intermediate(root()), is_own=False)
    assert step(trust, Wish(), NOW + 300 * DAY) == trust
    assert step(trust, Wish(rotation="ours again"), NOW).next_is_own


def test_an_expired_issuer_is_replaced_at_once() -> None:
    trust = settled(intermediate(root(), life=DAY), is_own=False)
    plugged = intermediate(root())
    assert step(trust, Wish(plugged), NOW + DAY, is_heard=False).issuer is plugged


def test_every_state_survives_being_kept() -> None:
    wish = Wish(rotation="x")
    trust = settled(root(), is_own=True)
    for at in (NOW, NOW + DAY, NOW + 2 * DAY, NOW + 4 * DAY):
        trust = step(trust, wish, at)
        kept = vault.decode({"data": vault.encode(trust)})
        assert vault.encode(kept) == vault.encode(trust)
        assert kept.issuer.anchors == trust.issuer.anchors
        assert kept.phase == trust.phase


@pytest.mark.parametrize("hour", [0, 23, 24, 30, 72, 100])
def test_a_root_that_signs_is_always_trusted_and_was_known_for_long(hour: int) -> None:
    trust, wish = settled(root(), is_own=True), Wish(rotation="x")
    for past in range(hour + 1):
        trust = step(trust, wish, NOW + past * HOUR)
        (own,) = (one for one in trust.roots if one.certificate == trust.issuer.certificate)
        assert own.since <= NOW + past * HOUR - DAY


def test_roots_of_one_name_are_told_apart_by_key_identifiers_or_refused() -> None:
    old, above = root(), root()
    assert not ambiguity(intermediate(above), [*old.roots, *above.roots])
    unnamed = intermediate(above, names_its_issuers_key=False)
    assert "no key identifiers" in ambiguity(unnamed, [*old.roots, *above.roots])
    assert not ambiguity(unnamed, above.roots)


def test_a_root_that_is_distrusted_goes_with_the_change_of_issuer_and_not_before() -> None:
    trust = settled(root(), is_own=True)
    old = trust.issuer
    wish = Wish(rotation="stolen", distrusted=frozenset([keys.fingerprint(old.certificate)]))
    trust = step(trust, wish, NOW)
    assert old.certificate in trust.certificates
    trust = step(trust, wish, NOW + DAY)
    assert trust.certificates == trust.issuer.roots
    assert trust.issuer is not old
