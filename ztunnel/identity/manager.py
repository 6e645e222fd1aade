"""Keeps a valid certificate in the engine for every identity that a pod of this node has.

One task per identity: fetch, hand to the engine, sleep until half of its life is over, fetch again. A failure is
retried with backoff while the old certificate serves on until it expires; then it is withdrawn, and connections
that need it are refused with `identity_unavailable`. What roots are trusted is said with each certificate, and by the
controller when it changes: then all identities have the new roots at once. The manager is the only writer of
identities in the engine.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from mesh.aio import Background
from mesh.identity import Identity
from ztunnel.identity import svid
from ztunnel.identity.svid import BadCertificate, Svid

log = logging.getLogger(__name__)

# Reference 3.3: first retry within a second, then doubling to two and a half minutes, spread by a fifth.
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 150.0
BACKOFF_SPREAD = 0.2
FETCHES_AT_ONCE = 8
RENEW_PAUSE_S = 1.0


class CaUnavailable(Exception):
    """The CA cannot be reached or refused; the message says which and why."""


class Ca(Protocol):
    """Signs certificate requests."""

    async def sign(self, identity: Identity, csr_pem: str) -> list[str]:
        """The chain `[leaf, intermediates..., roots]`, or CaUnavailable."""


class IdentitySink(Protocol):
    """Where certificates go: the engine."""

    def put_identity(self, identity: str, chain_pem: str, key_pem: str, roots_pem: str) -> None:
        """Replace the certificate of an identity."""

    def remove_identity(self, identity: str) -> None:
        """Forget it; connections that need it are refused."""


@dataclass(slots=True)
class _Entry:
    users: int = 0
    task: asyncio.Task[None] | None = None
    svid: Svid | None = None
    last_error: str = ""
    wanted: asyncio.Event | None = None
    due: asyncio.Event = field(default_factory=asyncio.Event)  # renew now, whatever the time


class IdentityManager:
    """Owns the certificates of this node; used from the event loop only."""

    def __init__(
        self,
        ca: Ca,
        sink: IdentitySink,
        background: Background,
        clock: Callable[[], datetime] = svid.now_utc,
    ) -> None:
        self._ca = ca
        self._sink = sink
        self._background = background
        self._clock = clock
        self._entries: dict[Identity, _Entry] = {}
        self._roots_pem = ""  # as the controller said last; empty: it has not said anything
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE)

    def acquire(self, identity: Identity) -> None:
        """A pod with this identity is here: have a certificate ready. Each call needs a `release`."""
        entry = self._entries.setdefault(identity, _Entry())
        entry.users += 1
        if entry.task is None:
            entry.wanted = asyncio.Event()
            entry.task = self._background.run_once(self._keep(identity, entry), name=f"identity {identity}")

    def release(self, identity: Identity) -> None:
        """The pod is gone; the last one takes the certificate with it."""
        entry = self._entries[identity]
        entry.users -= 1
        if entry.users == 0:
            if entry.task is not None:
                entry.task.cancel()
            del self._entries[identity]
            if entry.svid is not None:
                self._sink.remove_identity(str(identity))

    def hurry(self, identity: Identity) -> None:
        """A connection waits for this identity: do not sit out a backoff."""
        entry = self._entries.get(identity)
        if entry is not None and entry.svid is None and entry.wanted is not None:
            entry.wanted.set()

    def trust(self, roots_pem: str) -> None:
        """From now on these are the roots; raises BadCertificate. Whose certificate they do not cover gets another."""
        svid.read_roots(roots_pem)
        self._roots_pem = svid.join_roots(roots_pem)
        for identity, entry in self._entries.items():
            if entry.svid is None:
                continue
            self._put(identity, entry, replace(entry.svid, roots_pem=self._roots_pem))
            if not svid.leads_to(entry.svid.chain_pem, self._roots_pem):
                log.warning("certificate for %s is of a root that is no longer trusted; asking for another", identity)
                entry.due.set()
        log.info("%d roots are trusted", len(svid.read_roots(self._roots_pem)))

    def certificates(self) -> dict[Identity, tuple[Svid | None, str]]:
        """For `/config_dump`: what each identity has, and the last error of those that have nothing new."""
        return {identity: (entry.svid, entry.last_error) for identity, entry in self._entries.items()}

    @property
    def pending(self) -> list[Identity]:
        """Identities without a certificate yet."""
        return [identity for identity, entry in self._entries.items() if entry.svid is None]

    async def _keep(self, identity: Identity, entry: _Entry) -> None:
        backoff = BACKOFF_FIRST_S
        while True:
            try:
                fresh = await self._fetch(identity)
            except (CaUnavailable, BadCertificate) as error:
                entry.last_error = str(error)
                log.warning("no certificate for %s: %s; next try in about %.1f s", identity, error, backoff)
                self._withdraw_expired(identity, entry)
                await self._wait(entry, self._bounded_by_expiry(entry, backoff))
                backoff = min(backoff * 2, BACKOFF_MAX_S)
                continue
            backoff = BACKOFF_FIRST_S
            entry.last_error = ""
            # Both are recent, and neither is known to be the later one.
            self._put(identity, entry, replace(fresh, roots_pem=svid.join_roots(self._roots_pem, fresh.roots_pem)))
            log.info("certificate for %s valid until %s", identity, fresh.not_after)
            await self._until_due(entry, (fresh.renew_at - self._clock()).total_seconds())

    def _put(self, identity: Identity, entry: _Entry, held: Svid) -> None:
        entry.svid = held
        self._sink.put_identity(str(identity), held.chain_pem, held.key_pem, held.roots_pem)

    @staticmethod
    async def _until_due(entry: _Entry, seconds: float) -> None:
        await asyncio.sleep(RENEW_PAUSE_S)  # also when it is due at once: the CA is not asked in a loop
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds - RENEW_PAUSE_S)):
                await entry.due.wait()
        entry.due.clear()

    async def _fetch(self, identity: Identity) -> Svid:
        async with self._slots:
            csr, key = svid.make_request(identity)
            chain = await self._ca.sign(identity, csr)
        return svid.accept(identity, key, chain, self._clock())

    def _withdraw_expired(self, identity: Identity, entry: _Entry) -> None:
        if entry.svid is not None and entry.svid.not_after <= self._clock():
            log.error("certificate for %s expired and could not be renewed: %s", identity, entry.last_error)
            entry.svid = None
            self._sink.remove_identity(str(identity))

    def _bounded_by_expiry(self, entry: _Entry, backoff: float) -> float:
        spread = backoff * random.uniform(1 - BACKOFF_SPREAD, 1 + BACKOFF_SPREAD)
        if entry.svid is None:
            return spread
        return min(spread, max(0.1, (entry.svid.not_after - self._clock()).total_seconds()))

    async def _wait(self, entry: _Entry, seconds: float) -> None:
        assert entry.wanted is not None
        await asyncio.sleep(BACKOFF_FIRST_S)  # also when hurried: connections must not flood the CA
        entry.wanted.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds - BACKOFF_FIRST_S)):
                await entry.wanted.wait()
