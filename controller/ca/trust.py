"""Which issuer signs and which roots the mesh trusts, and how both change without a failed handshake.

    steady -> distributing -> retiring -> steady

A new issuer is *next* at first: its root is given to everybody, and nothing is signed by it. Once everybody has had
the time to learn (`distribution`) it signs. Roots that no issuer needs any more stay trusted for as long as a leaf of
theirs may live (`retirement`) and are then dropped. An issuer whose root has been trusted for long already (a new
intermediate under the old root) signs at once: peers get the intermediate with each leaf.

Nothing here talks to anybody: `advance` says what comes after a state, whoever keeps it (`controller.ca.vault`). Each
state is whole, so a controller that dies between two of them leaves nothing half done.
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cryptography import x509

from controller.ca import keys
from controller.ca.issuer import Issuer, new_root

# A root of our own is replaced in time: with a fifth of its life left.
_LAST_PART = 5


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A root that the mesh trusts: since when, and since when no issuer needs it (None: one does)."""

    certificate: x509.Certificate
    since: datetime.datetime
    unneeded_since: datetime.datetime | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """What is in force."""

    issuer: Issuer
    roots: tuple[TrustedRoot, ...]
    is_own: bool = True  # the issuer is a root of ours, not an operator's
    next: Issuer | None = None
    next_is_own: bool = True
    rotation: str = ""  # the last wish for a new root of our own that was taken up

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """All roots to trust."""
        return tuple(root.certificate for root in self.roots)

    @property
    def phase(self) -> str:
        """`steady`, `distributing` (a next issuer waits) or `retiring` (roots of old leaves are still trusted)."""
        if self.next is not None:
            return "distributing"
        return "retiring" if any(root.unneeded_since for root in self.roots) else "steady"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: an operator's issuer, if there is one; and any new word asks for a new root of our own.

    Roots whose SHA-256 is among `distrusted` do not stay for their leaves' sake.
    """

    plugged: Issuer | None = None
    rotation: str = ""
    distrusted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Overlap:
    """How long everybody gets to learn a root before it signs, and how long one lives on that signs no more."""

    distribution: datetime.timedelta = datetime.timedelta(days=1)
    retirement: datetime.timedelta = datetime.timedelta(days=90)


def ambiguity(issuer: Issuer, roots: Iterable[x509.Certificate]) -> str:
    """Why peers could take another root for this issuer's; "" if they cannot.

    OpenSSL, and others, look for the root by name; among several of one name only key identifiers tell them apart, and
    the first that fits is taken, right or wrong. Old and new roots of one name are what a rotation often has.
    """
    top = issuer.path[-1]
    _, above = keys.key_identifiers(top)
    for root in roots:
        if root.subject != top.issuer or keys.is_signed_by(top, root):
            continue
        own, _ = keys.key_identifiers(root)
        if above is None or own is None:
            name = root.subject.rfc4514_string()
            return f"another root that is trusted is named {name} too, and no key identifiers tell the two apart"
    return ""


def first(trust_domain: str, wish: Wish, now: datetime.datetime) -> Trust:
    """The state of a mesh that has none: nobody holds a leaf, so the issuer signs at once."""
    issuer = wish.plugged or new_root(trust_domain, now)
    roots = tuple(TrustedRoot(root, now) for root in issuer.roots)
    return Trust(issuer, roots, is_own=wish.plugged is None, rotation=wish.rotation)


def advance(
    trust: Trust, wish: Wish, overlap: Overlap, trust_domain: str, now: datetime.datetime, *, is_heard: bool
) -> Trust:
    """The next state, or the same one. `is_heard`: as far as we can see, everybody has the roots of this state."""
    chosen = _choose_next(trust, wish, trust_domain, now)
    is_over = chosen.issuer.expires <= now  # no leaf of it is alive: there is nobody left to be careful about
    if chosen.next is not None and (is_over or _may_sign(chosen, overlap, now, is_heard=is_heard)):
        chosen = replace(chosen, issuer=chosen.next, is_own=chosen.next_is_own, next=None, next_is_own=True)
    return replace(chosen, roots=tuple(_roots(chosen, wish, overlap, now)))


def _choose_next(trust: Trust, wish: Wish, trust_domain: str, now: datetime.datetime) -> Trust:
    plugged = wish.plugged
    if plugged is not None:
        if plugged.certificate == trust.issuer.certificate:
            return replace(trust, issuer=plugged, is_own=False, next=None, next_is_own=True, rotation=wish.rotation)
        return replace(trust, next=plugged, next_is_own=False, rotation=wish.rotation)
    if trust.next is not None:
        # An operator's issuer that is withdrawn before it has signed anything was never there.
        return trust if trust.next_is_own else replace(trust, next=None, next_is_own=True)
    is_asked = wish.rotation != trust.rotation
    if is_asked or (trust.is_own and _ends_soon(trust.issuer, now)):
        return replace(trust, next=new_root(trust_domain, now), next_is_own=True, rotation=wish.rotation)
    return trust


def _ends_soon(issuer: Issuer, now: datetime.datetime) -> bool:
    life = issuer.certificate.not_valid_after_utc - issuer.certificate.not_valid_before_utc
    return issuer.expires - now < life / _LAST_PART


def _may_sign(trust: Trust, overlap: Overlap, now: datetime.datetime, *, is_heard: bool) -> bool:
    """The root of the next issuer has been given to everybody for long enough.

    Who does not answer, or refuses it, is waited for as long again: one node must not keep a mesh from leaving a root.
    """
    assert trust.next is not None
    anchors = trust.next.anchors
    wait = overlap.distribution * (1 if is_heard else 2)
    return any(root.certificate in anchors and root.since + wait <= now for root in trust.roots)


def _roots(trust: Trust, wish: Wish, overlap: Overlap, now: datetime.datetime) -> Iterable[TrustedRoot]:
    needed = [*trust.issuer.roots, *(trust.next.roots if trust.next is not None else ())]
    known = {root.certificate for root in trust.roots}
    for root in trust.roots:
        if root.certificate in needed:
            yield replace(root, unneeded_since=None)
            continue
        if keys.fingerprint(root.certificate) in wish.distrusted:
            continue
        since = root.unneeded_since or now
        if now < since + overlap.retirement and now < root.certificate.not_valid_after_utc:
            yield replace(root, unneeded_since=since)
    for certificate in dict.fromkeys(needed):
        if certificate not in known:
            yield TrustedRoot(certificate, now)
