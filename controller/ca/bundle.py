"""Which roots are trusted when somebody else signs: kept in the ConfigMap that everybody reads anyway.

A signer outside tells of a new root only by signing with it. So a root that was never seen before is first given to
everybody, and only then is the leaf that it signed handed out. A root that signs no more stays for as long as a leaf of
it may live: each is kept with the time at which it was last seen to sign.
"""

import asyncio
import datetime
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from controller.ca import keys
from controller.ca.distribution import CONDITION, CONFIG_MAP, config_map, pem, push_roots
from controller.serve.hub import Hub
from mesh.kube.api import Api, Selection
from mesh.kube.errors import Conflict, NotFound
from mesh.kube.follow import Follow
from mesh.kube.resources import CONFIG_MAPS
from mesh.xds import ROOTS_TYPE

log = logging.getLogger(__name__)

SEEN = "culvert.io/roots-seen"

# Nodes of this replica that have not answered a new root in this time are not waited for any longer.
_SETTLE_TIMEOUT_S = 3.0
# What another replica and its nodes need: a watch event and an answer, a hundred times over.
_OTHERS_S = 1.0
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Terms:
    """Where the bundle is kept, and for how long a root that is not seen any more."""

    namespace: str
    trust_domain: str
    retirement: datetime.timedelta


class Bundle:
    """The roots, followed; any replica adds to them, each change a replacement of the version that it was made from."""

    def __init__(
        self, api: Api, terms: Terms, hub: Hub, clock: Callable[[], datetime.datetime], on_change: Callable[[], None]
    ) -> None:
        self._api = api
        self._terms = terms
        self._hub = hub
        self._clock = clock
        self._on_change = on_change
        self._seen: dict[x509.Certificate, datetime.datetime] = {}

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """All that are trusted now."""
        return tuple(self._seen)

    async def load(self) -> None:
        """Read what there is; raises ApiFault."""
        try:
            self._take(await self._api.get(CONFIG_MAPS, CONFIG_MAP, self._terms.namespace))
        except NotFound:
            log.info("ConfigMap %s is not there yet: no root is known", CONFIG_MAP)

    async def follow(self) -> None:
        """Keep up with what other replicas add."""
        selection = Selection(CONFIG_MAPS, self._terms.namespace, field_selector=f"metadata.name={CONFIG_MAP}")
        await Follow(self._api, selection, lambda item: item, self).run()

    async def vouch(self, root: x509.Certificate) -> None:
        """Return when everybody trusts the root, as far as can be seen; raises ApiFault."""
        is_new, had_some = root not in self._seen, bool(self._seen)
        if not is_new and self._clock() - self._seen[root] < self._terms.retirement / 10:
            return
        await self._add(root)
        if is_new and had_some:
            log.warning("certificates are signed by a new root, %s; it is given to everybody first", _name(root))
            await self._hub.wait_settled(ROOTS_TYPE, self._hub.sets[ROOTS_TYPE].revision, _SETTLE_TIMEOUT_S)
            await asyncio.sleep(_OTHERS_S)

    async def note(self, condition: str) -> None:
        """Write the condition and drop what is too old (the leader's part); raises ApiFault."""
        await self._change(lambda seen: seen, condition)

    # --- Follower

    def listed(self, items: Sequence[Mapping[str, Any]]) -> None:
        """The ConfigMap, or none: then what was known stays known, and is written with the next change."""
        if items:
            self._take(items[0])

    def changed(self, items: Sequence[tuple[bool, Mapping[str, Any]]]) -> None:
        """What it is now."""
        is_there, found = items[-1]
        if is_there:
            self._take(found)

    # --- one version after the other

    async def _add(self, root: x509.Certificate) -> None:
        now = self._clock()
        await self._change(lambda seen: {**seen, root: now})

    async def _change(
        self,
        change: Callable[[dict[x509.Certificate, datetime.datetime]], dict[x509.Certificate, datetime.datetime]],
        condition: str = "",
    ) -> None:
        for _ in range(_TRIES):
            try:
                found = await self._api.get(CONFIG_MAPS, CONFIG_MAP, self._terms.namespace)
            except NotFound:
                found = None
            held = {**self._seen, **(_read(found) if found else {})}
            oldest = self._clock() - self._terms.retirement
            wanted = {root: seen for root, seen in change(held).items() if seen > oldest}
            try:
                self._take(await self._write(found, wanted or held, condition))
            except Conflict:
                continue
            return
        raise Conflict(f"ConfigMap {CONFIG_MAP} changes faster than it can be written", 409)

    async def _write(
        self, found: Mapping[str, Any] | None, seen: dict[x509.Certificate, datetime.datetime], condition: str
    ) -> Mapping[str, Any]:
        text = pem(tuple(seen))
        data = {"roots.pem": text, "root-cert.pem": text}
        notes = {SEEN: json.dumps({keys.fingerprint(root): at.isoformat() for root, at in seen.items()})}
        if condition:
            notes[CONDITION] = condition
        if found is None:
            return await self._api.create(
                CONFIG_MAPS, config_map(self._terms.namespace, data, notes), self._terms.namespace
            )
        noted = {**(found["metadata"].get("annotations") or {}), **notes}
        if found.get("data") == data and noted == found["metadata"].get("annotations"):
            return found
        changed = {**found, "data": data, "metadata": {**found["metadata"], "annotations": noted}}
        return await self._api.replace(CONFIG_MAPS, changed, self._terms.namespace)

    def _take(self, found: Mapping[str, Any]) -> None:
        seen = _read(found)
        if not seen:
            log.error("ConfigMap %s holds no root that can be read; those known before stay trusted", CONFIG_MAP)
            return
        is_other = seen.keys() != self._seen.keys()
        self._seen = seen
        if is_other:
            push_roots(self._hub, self._terms.trust_domain, self.roots)
            self._on_change()


def _read(found: Mapping[str, Any]) -> dict[x509.Certificate, datetime.datetime]:
    try:
        roots = keys.load_certificates(str((found.get("data") or {}).get("roots.pem", "")).encode())
    except keys.InvalidKey:
        return {}
    try:
        noted = json.loads(((found.get("metadata") or {}).get("annotations") or {}).get(SEEN, "{}"))
        times = {name: datetime.datetime.fromisoformat(at) for name, at in noted.items()}
    except (ValueError, TypeError, AttributeError):
        times = {}
    unknown = datetime.datetime.now(datetime.UTC)  # put there by somebody else: as if it were seen now
    return {root: times.get(keys.fingerprint(root), unknown) for root in roots}


def _name(root: x509.Certificate) -> str:
    return root.subject.rfc4514_string() or keys.fingerprint(root)[:16]
