"""Tells everybody which roots to trust, and people how long that holds.

Three ways: the private resource type on the xDS stream, at once, to whoever asks for it; the ConfigMap
`culvert-ca-root`, mounted by processes that have no stream yet; and the last element of each answer of the CA. The
first two are here. The ConfigMap is written by the leader; its annotation `culvert.io/ca-condition` is what an
administrator looks at: `Ready`, or what is about to go wrong.
"""

import datetime
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cryptography import x509

from controller.ca import keys
from controller.ca.trust import Trust
from controller.serve.hub import Hub
from controller.status.metrics import Metrics
from controller.translate.compile import Resource
from mesh.kube.api import Api
from mesh.kube.errors import ApiFault, Conflict, NotFound
from mesh.kube.resources import CONFIG_MAPS
from mesh.wire.trust_pb2 import Roots
from mesh.xds import ROOTS_TYPE, encode_resource

log = logging.getLogger(__name__)

CONFIG_MAP = "culvert-ca-root"
CONDITION = "culvert.io/ca-condition"
PHASE = "culvert.io/ca-phase"

PHASES = ("steady", "distributing", "retiring")

# What ends within this part of its life is spoken of.
_LAST_PART = 5


def push_roots(hub: Hub, trust_domain: str, roots: tuple[x509.Certificate, ...]) -> None:
    """Put the roots into the store, from where every stream that asked for them gets them."""
    value = Roots(pem=pem(roots)).SerializeToString()
    version = hashlib.sha256(value).hexdigest()[:16]
    resource = Resource(ROOTS_TYPE, trust_domain, version, encode_resource(ROOTS_TYPE, trust_domain, version, value))
    if hub.sets[ROOTS_TYPE].put(resource):
        hub.changed()


def condition(trust: Trust, faults: Mapping[str, str], now: datetime.datetime) -> str:
    """`Ready`, or the worst that there is to say."""
    if trust.issuer.expires <= now:
        return f"Expired: the issuer of certificates expired {trust.issuer.expires}; nothing is signed"
    if faults:
        return "Faulty: " + "; ".join(f"{sentence}" for _, sentence in sorted(faults.items()))
    named = [("issuer", trust.issuer.certificate), *(("root", root) for root in trust.issuer.anchors)]
    return (expiring(named, now) if trust.next is None else "") or "Ready"


def expiring(named: Iterable[tuple[str, x509.Certificate]], now: datetime.datetime) -> str:
    """What to say of the first certificate that is in the last part of its life; empty if none is."""
    for what, one in named:
        life = one.not_valid_after_utc - one.not_valid_before_utc
        if one.not_valid_after_utc - now < life / _LAST_PART:
            return f"Expiring: the {what} of certificates ends {one.not_valid_after_utc} and nothing follows it"
    return ""


def measure(metrics: Metrics, trust: Trust) -> None:
    """What monitoring is told of a state."""
    expiry = metrics.ca_expiry
    expiry.clear()
    expiry.labels("issuer").set(trust.issuer.expires.timestamp())
    expiry.labels("root").set(max(root.not_valid_after_utc for root in trust.issuer.anchors).timestamp())
    if trust.next is not None:
        expiry.labels("next").set(trust.next.expires.timestamp())
    metrics.ca_roots.set(len(trust.roots))
    for phase in PHASES:
        metrics.ca_phase.labels(phase).set(phase == trust.phase)


class Distribution:
    """Implements the keeper's Audience."""

    def __init__(
        self, api: Api, namespace: str, hub: Hub, faults: Callable[[], Mapping[str, str]], now: Callable[[], Any]
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._hub = hub
        self._faults = faults
        self._now = now

    async def publish(self, trust: Trust) -> bool:
        """Bring the ConfigMap up to date; False if that failed or a node here has not taken the roots yet."""
        try:
            await self._write(trust)
        except ApiFault as fault:
            log.warning("ConfigMap %s cannot be written: %s", CONFIG_MAP, fault)
            return False
        revision = self._hub.sets[ROOTS_TYPE].revision
        return all(stream.has_accepted(ROOTS_TYPE, revision) for stream in self._hub.streams)

    async def _write(self, trust: Trust) -> None:
        text = pem(trust.certificates)
        wanted = {"roots.pem": text, "root-cert.pem": text}
        notes = {CONDITION: condition(trust, self._faults(), self._now()), PHASE: trust.phase}
        try:
            found = await self._api.get(CONFIG_MAPS, CONFIG_MAP, self._namespace)
        except NotFound:
            await self._create(wanted, notes)
            return
        metadata = found.get("metadata") or {}
        noted = metadata.get("annotations") or {}
        if found.get("data") != wanted or any(noted.get(name) != text for name, text in notes.items()):
            changed = {**found, "data": wanted, "metadata": {**metadata, "annotations": {**noted, **notes}}}
            await self._api.replace(CONFIG_MAPS, changed, self._namespace)
            log.info("ConfigMap %s: %s", CONFIG_MAP, notes[CONDITION])

    async def _create(self, data: Mapping[str, str], notes: Mapping[str, str]) -> None:
        try:
            await self._api.create(CONFIG_MAPS, config_map(self._namespace, data, notes), self._namespace)
        except Conflict:
            log.info("ConfigMap %s was created meanwhile", CONFIG_MAP)
            raise


def config_map(namespace: str, data: Mapping[str, str], notes: Mapping[str, str]) -> dict[str, Any]:
    """The ConfigMap with these contents and annotations."""
    labels = {"app.kubernetes.io/part-of": "culvert", "app.kubernetes.io/managed-by": "culvert"}
    metadata = {"name": CONFIG_MAP, "namespace": namespace, "labels": labels, "annotations": dict(notes)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


def pem(roots: tuple[x509.Certificate, ...]) -> str:
    """Certificates in PEM, one after the other."""
    return b"".join(map(keys.certificate_pem, roots)).decode()
