"""Keeps the state of trust in the cluster: one Secret that all replicas sign from, changed by the leader alone.

Whoever starts first creates it, whole, in one request; whoever comes second reads what is there. From then on every
replica follows the Secret (and the operator's, `cacerts`) and signs as it says. The leader advances it, step by step
(controller.ca.trust), each step a replacement of exactly the version that it was made from. A Secret that somebody
broke is reported and changes nothing: the last good state stays in force.
"""

import asyncio
import datetime
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from controller.ca import vault
from controller.ca.issuer import IssuerUnavailable
from controller.ca.trust import Overlap, Trust, TrustedRoot, Wish, advance, ambiguity, first
from mesh.aio import Background
from mesh.kube.api import Api, Selection
from mesh.kube.backoff import Backoff
from mesh.kube.errors import ApiFault, Conflict, NotFound
from mesh.kube.follow import Follow, is_before
from mesh.kube.resources import SECRETS

log = logging.getLogger(__name__)

# How often the leader looks whether a step is due; the steps themselves are hours apart.
TICK_S = 5.0


@dataclass(frozen=True, slots=True)
class Terms:
    """How the state is kept."""

    namespace: str
    trust_domain: str
    overlap: Overlap
    tick_s: float = TICK_S


class Audience(Protocol):
    """Who has to know the roots."""

    async def publish(self, trust: Trust) -> bool:
        """Tell everybody (the leader's part); False if that failed or somebody has not taken it yet."""


class Keeper:
    """Owns the state of trust in this process; `on_change` hears of each new one, the first within `open`."""

    def __init__(
        self,
        api: Api,
        terms: Terms,
        on_change: Callable[[Trust], None],
        is_leader: Callable[[], bool],
        audience: Audience,
        clock: Callable[[], datetime.datetime],
    ) -> None:
        self._api = api
        self._terms = terms
        self._on_change = on_change
        self._is_leader = is_leader
        self._audience = audience
        self._clock = clock
        self._secret: Mapping[str, Any] = {}
        self._is_there = True
        self._plugged: Mapping[str, Any] | None = None
        self._due = asyncio.Event()
        self.trust: Trust | None = None
        self.faults: dict[str, str] = {}  # by Secret, what is wrong with it now

    async def open(self) -> None:
        """Read the state, or create it; returns when there is one. Raises IssuerUnavailable if what is there is bad."""
        backoff = Backoff()
        while self.trust is None:
            try:
                self._plugged = await self._read(vault.PLUGGED_SECRET)
                secret = await self._read(vault.SECRET) or await self._create()
                self._adopt(secret, vault.decode(secret))
            except Conflict:
                log.info("Secret %s was created by another replica", vault.SECRET)
            except ApiFault as fault:
                log.warning("Secret %s cannot be read or created: %s", vault.SECRET, fault)
                await asyncio.sleep(backoff.next_s(fault.retry_after_s))

    async def run(self) -> None:
        """Follow and, as the leader, advance."""
        async with Background() as tasks:
            for name, take in ((vault.SECRET, self._take_own), (vault.PLUGGED_SECRET, self._take_plugged)):
                tasks.start(self._follow(name, take), f"secret {name}")
            tasks.start(self._advance_when_due(), "trust")
            await tasks.failed()

    # --- what others write

    def _follow(self, name: str, take: Callable[[Mapping[str, Any] | None, bool], None]) -> Coroutine[Any, Any, None]:
        selection = Selection(SECRETS, self._terms.namespace, field_selector=f"metadata.name={name}")
        return Follow(self._api, selection, lambda item: item, _One(take)).run()

    def _take_own(self, secret: Mapping[str, Any] | None, is_event: bool) -> None:
        if is_event and is_before(_version(secret), _version(self._secret)):
            return  # from before a step of our own
        self._is_there = secret is not None
        if secret is None:
            log.error("Secret %s was deleted; the state that it held stays in force", vault.SECRET)
            self.faults[vault.SECRET] = "deleted"
        elif _version(secret) != _version(self._secret):
            try:
                self._adopt(secret, self._with_later_roots(secret, vault.decode(secret)))
            except IssuerUnavailable as error:
                self._secret = secret
                self._fail(vault.SECRET, str(error))
        self._due.set()

    def _with_later_roots(self, secret: Mapping[str, Any], trust: Trust) -> Trust:
        """After the API server's storage was restored: leaves may be alive of a root that it has never heard of."""
        if self.trust is None or not is_before(_version(secret), _version(self._secret)):
            return trust
        log.warning("Secret %s has gone back to an earlier version; the roots known since stay trusted", vault.SECRET)
        lost = (root for root in self.trust.roots if root.certificate not in trust.certificates)
        kept = (TrustedRoot(root.certificate, root.since, self._clock()) for root in lost)
        return replace(trust, roots=(*trust.roots, *kept))

    def _take_plugged(self, secret: Mapping[str, Any] | None, is_event: bool) -> None:
        del is_event
        if secret is None and self._plugged is not None:
            log.warning("Secret %s was deleted; its issuer stays in force", vault.PLUGGED_SECRET)
        self._plugged = secret
        self._wish()
        self._due.set()

    def _wish(self) -> Wish:
        wish = self._own_wish()
        if self._plugged is None:
            self.faults.pop(vault.PLUGGED_SECRET, None)
            return wish
        try:
            plugged = vault.decode_plugged(self._plugged, self._clock())
            trusted = self.trust.certificates if self.trust is not None else plugged.roots
            if sentence := ambiguity(plugged, trusted):
                raise IssuerUnavailable(f"Secret {vault.PLUGGED_SECRET}: ca-cert.pem: {sentence}")
        except IssuerUnavailable as error:
            self._fail(vault.PLUGGED_SECRET, str(error))
            return wish
        self.faults.pop(vault.PLUGGED_SECRET, None)
        return replace(wish, plugged=plugged)

    def _own_wish(self) -> Wish:
        notes = (self._secret.get("metadata") or {}).get("annotations") or {}
        distrusted = str(notes.get(vault.DISTRUST, "")).lower().replace(":", "").split(",")
        return Wish(None, str(notes.get(vault.ROTATE, "")), frozenset(map(str.strip, distrusted)))

    def _fail(self, name: str, sentence: str) -> None:
        if self.faults.get(name) != sentence:
            log.error("%s; the last good state stays in force", sentence)
        self.faults[name] = sentence

    def _adopt(self, secret: Mapping[str, Any], trust: Trust) -> None:
        before, self.trust, self._secret, self._is_there = self.trust, trust, secret, True
        self.faults.pop(vault.SECRET, None)
        if before is None or vault.encode(before) != vault.encode(trust):
            log.info("certificates: %s, %d roots trusted", trust.phase, len(trust.roots))
            self._on_change(trust)

    # --- what the leader does

    async def _advance_when_due(self) -> None:
        backoff = Backoff()
        while True:
            self._due.clear()
            if self._is_leader():
                try:
                    await self._advance()
                    backoff.reset()
                except Conflict:
                    log.info("Secret %s has changed meanwhile", vault.SECRET)
                except ApiFault as fault:
                    log.warning("certificates cannot be brought forward: %s", fault)
                    await asyncio.sleep(backoff.next_s(fault.retry_after_s))
            try:
                async with asyncio.timeout(self._terms.tick_s):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _advance(self) -> None:
        assert self.trust is not None, "opened before"
        trust = self.trust
        is_heard = await self._audience.publish(trust)
        if vault.SECRET in self.faults and self._is_there:
            return  # somebody broke it: not ours to overwrite
        following = advance(
            trust, self._wish(), self._terms.overlap, self._terms.trust_domain, self._clock(), is_heard=is_heard
        )
        data = vault.encode(following)
        if not self._is_there:
            secret = await self._write_new(following)
        elif data != self._secret.get("data") and self._is_leader():
            secret = await self._api.replace(SECRETS, {**self._secret, "data": data}, self._terms.namespace)
        else:
            return
        self._adopt(secret, following)
        self._due.set()

    async def _create(self) -> Mapping[str, Any]:
        wish = self._wish()
        if vault.PLUGGED_SECRET in self.faults:
            # Who plugs in an issuer does not want a root of ours instead, however badly it is made.
            raise IssuerUnavailable(self.faults[vault.PLUGGED_SECRET])
        trust = first(self._terms.trust_domain, wish, self._clock())
        secret = await self._write_new(trust)
        log.info("Secret %s created", vault.SECRET)
        return secret

    async def _write_new(self, trust: Trust) -> Mapping[str, Any]:
        labels = {"app.kubernetes.io/part-of": "culvert", "app.kubernetes.io/managed-by": "culvert"}
        metadata = {"name": vault.SECRET, "namespace": self._terms.namespace, "labels": labels}
        document = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata}
        return await self._api.create(SECRETS, {**document, "data": vault.encode(trust)}, self._terms.namespace)

    async def _read(self, name: str) -> Mapping[str, Any] | None:
        try:
            return await self._api.get(SECRETS, name, self._terms.namespace)
        except NotFound:
            return None


class _One:
    """Follows a collection of one object."""

    def __init__(self, take: Callable[[Mapping[str, Any] | None, bool], None]) -> None:
        self._take = take

    def listed(self, items: Sequence[Mapping[str, Any]]) -> None:
        """There is one or none."""
        self._take(items[0] if items else None, False)

    def changed(self, items: Sequence[tuple[bool, Mapping[str, Any]]]) -> None:
        """What it is now."""
        is_there, item = items[-1]
        self._take(item if is_there else None, True)


def _version(secret: Mapping[str, Any] | None) -> str:
    return str(((secret or {}).get("metadata") or {}).get("resourceVersion", ""))
