"""Certificates from cert-manager: a CertificateRequest per leaf, signed by whatever issuer an operator has there.

The request carries the caller's own CSR, so nothing is signed that was not asked for; what comes back is checked all
the same: the key, the one name, that it is no authority, and that it leads to the CA that came with it. Approval is
cert-manager's (or its approver's) business: the identity stands in an annotation for it to look at.
"""

import asyncio
import base64
import datetime
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from controller.ca import keys
from controller.ca.authority import Clock, InvalidRequest, Issued, Lifetimes, NotIssued, requested_key
from controller.ca.bundle import Bundle, Terms
from controller.ca.distribution import expiring
from controller.serve.hub import Hub
from controller.status.metrics import Metrics
from mesh.aio import Background
from mesh.identity import Identity
from mesh.kube.api import Api, Selection
from mesh.kube.errors import ApiFault, NotFound
from mesh.kube.resources import Resource

log = logging.getLogger(__name__)

REQUESTS = Resource("cert-manager.io", "v1", "certificaterequests")
_IDENTITY = "culvert.io/identity"
_LABELS = {"app.kubernetes.io/part-of": "culvert", "app.kubernetes.io/managed-by": "culvert"}
_SELECTOR = ",".join(f"{name}={value}" for name, value in _LABELS.items())
_USAGES = ["digital signature", "key encipherment", "server auth", "client auth"]

# A node gives up on its call after ten seconds.
DEADLINE_S = 8.0
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.05, 1.0
# Requests that wait at cert-manager; more are told to come back.
MAX_WAITING = 128
# What a controller that died left behind.
_SWEEP_S, _LEFT_AFTER = 300.0, datetime.timedelta(minutes=10)
# How often the leader looks whether there is something else to say.
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class IssuerRef:
    """The issuer, as cert-manager's objects name it."""

    name: str
    kind: str
    group: str


class CertManagerAuthority:
    """Implements CertificateAuthority."""

    def __init__(
        self,
        api: Api,
        terms: Terms,
        issuer: IssuerRef,
        lifetimes: Lifetimes,
        hub: Hub,
        metrics: Metrics,
        clock: Clock,
        is_leader: Callable[[], bool],
    ) -> None:
        self._api = api
        self._namespace = terms.namespace
        self._issuer = issuer
        self._lifetimes = lifetimes
        self._metrics = metrics
        self._clock = clock
        self._is_leader = is_leader
        self._waiting = 0
        self._fault = ""
        self._above: list[tuple[str, x509.Certificate]] = []  # what signed last, and its roots
        self._ends: datetime.datetime | None = None  # the first of them
        self._bundle = Bundle(api, terms, hub, clock, self._roots_changed)
        self.on_issuer: Callable[[], None] = lambda: None

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """All that are trusted now."""
        return self._bundle.roots

    async def open(self) -> None:
        """Learn which roots are known; what signs is seen with the first certificate."""
        while True:
            try:
                await self._bundle.load()
            except ApiFault as fault:
                log.warning("the roots cannot be read: %s", fault)
                await asyncio.sleep(fault.retry_after_s or _LONGEST_LOOK_S)
            else:
                return

    async def run(self) -> None:
        """Follow the roots; as the leader, say how things stand and sweep what was left behind."""
        async with Background() as tasks:
            tasks.start(self._bundle.follow(), "roots")
            tasks.start(self._look_after(), "certificate requests")
            await tasks.failed()

    async def issue(self, csr_pem: str, identity: Identity, lifetime_s: int) -> Issued:
        """A leaf for the key of a CSR; raises InvalidRequest or NotIssued."""
        requested_key(csr_pem, identity)
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        if list(csr.subject) or not _names_only(csr, [x509.UniformResourceIdentifier(str(identity))]):
            raise InvalidRequest(
                f"the CSR asks for more or less than the one name {identity}, and is signed as it stands"
            )
        wanted = min(lifetime_s, int(self._lifetimes.longest.total_seconds()))
        lifetime = datetime.timedelta(seconds=wanted) if lifetime_s > 0 else self._lifetimes.default
        return await self._issue(csr, str(identity), lifetime)

    async def issue_serving(
        self, key: keys.IssuerKey, names: Sequence[x509.GeneralName], lifetime: datetime.timedelta
    ) -> Issued:
        """A leaf for a server of the control plane itself; raises NotIssued."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return await self._issue(builder.sign(key, hashes.SHA256()), "culvert-controller", lifetime)

    async def _issue(self, csr: x509.CertificateSigningRequest, name: str, lifetime: datetime.timedelta) -> Issued:
        if self._waiting >= MAX_WAITING:
            raise NotIssued(f"{MAX_WAITING} requests wait at cert-manager")
        self._waiting += 1
        left = self._ends - self._clock() if self._ends else lifetime
        # Not every issuer cuts a leaf to its own life.
        asked = min(lifetime, left) if left > datetime.timedelta() else lifetime
        try:
            async with asyncio.timeout(DEADLINE_S):
                status = await self._ask(csr, name, asked)
            issued = self._check(status, csr)
            await self._bundle.vouch(issued.roots[0])
        except TimeoutError:
            raise self._failed(f"cert-manager has not answered for {DEADLINE_S:g} s") from None
        except NotFound as fault:
            raise self._failed(f"cert-manager is not installed here: {fault}") from fault
        except ApiFault as fault:
            raise self._failed(f"cert-manager cannot be asked: {fault}") from fault
        finally:
            self._waiting -= 1
        self._fault = ""
        self._above = [*(("issuer", one) for one in issued.chain), *(("root", one) for one in issued.roots)]
        self._ends = min(one.not_valid_after_utc for _, one in self._above)
        self._metrics.ca_expiry.labels("issuer").set(self._ends.timestamp())
        return Issued(issued.certificate, issued.chain, self._bundle.roots)

    def _failed(self, sentence: str) -> NotIssued:
        self._fault = sentence
        return NotIssued(sentence)

    # --- the request

    async def _ask(
        self, csr: x509.CertificateSigningRequest, name: str, lifetime: datetime.timedelta
    ) -> Mapping[str, Any]:
        made = await self._api.create(REQUESTS, self._document(csr, name, lifetime), self._namespace)
        request = str(made["metadata"]["name"])
        try:
            wait_s = _FIRST_LOOK_S
            while (status := self._verdict(made)) is None:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_LOOK_S)
                made = await self._api.get(REQUESTS, request, self._namespace)
            return status
        finally:
            await asyncio.shield(self._remove(request))

    def _document(self, csr: x509.CertificateSigningRequest, name: str, lifetime: datetime.timedelta) -> dict[str, Any]:
        issuer = {"name": self._issuer.name, "kind": self._issuer.kind, "group": self._issuer.group}
        spec = {
            "request": base64.b64encode(csr.public_bytes(Encoding.PEM)).decode(),
            "duration": f"{int(lifetime.total_seconds())}s",
            "isCA": False,
            "usages": _USAGES,
            "issuerRef": issuer,
        }
        metadata = {
            "generateName": "culvert-",
            "namespace": self._namespace,
            "labels": _LABELS,
            "annotations": {_IDENTITY: name},
        }
        return {
            "apiVersion": REQUESTS.api_version,
            "kind": "CertificateRequest",
            "metadata": metadata,
            "spec": spec,
        }

    def _verdict(self, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The status of a request that is signed; None while it is neither that nor refused. Raises NotIssued."""
        status = request.get("status") or {}
        found = {one.get("type"): one for one in status.get("conditions") or () if isinstance(one, dict)}
        for kind, word in (("InvalidRequest", "calls the request invalid"), ("Denied", "denied the request")):
            if (found.get(kind) or {}).get("status") == "True":
                raise self._failed(f"cert-manager {word}: {_message(found[kind])}")
        ready = found.get("Ready") or {}
        if ready.get("status") == "False" and ready.get("reason") in ("Failed", "Denied"):
            raise self._failed(f"the issuer {self._issuer.name} failed: {_message(ready)}")
        is_signed = ready.get("status") == "True" and status.get("certificate")
        return status if is_signed else None

    async def _remove(self, request: str) -> None:
        try:
            await self._api.delete(REQUESTS, request, self._namespace)
        except ApiFault as fault:
            log.info("CertificateRequest %s stays for now: %s", request, fault)

    # --- the answer

    def _check(self, status: Mapping[str, Any], csr: x509.CertificateSigningRequest) -> Issued:
        path = self._certificates(status, "certificate")
        roots = self._certificates(status, "ca") if status.get("ca") else [path[-1]]
        leaf, chain = path[0], [one for one in path[1:] if one not in roots]
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        top = chain[-1] if chain else leaf
        anchors = [root for root in roots if keys.is_signed_by(top, root)]
        if leaf.public_key() != csr.public_key():
            raise self._failed("cert-manager returned a certificate of another key")
        if not _has_exactly(leaf, names) or keys.is_authority(leaf):
            raise self._failed("cert-manager returned a certificate of other names, or one that may sign")
        if not all(keys.is_signed_by(lower, upper) for lower, upper in itertools.pairwise([leaf, *chain])):
            raise self._failed("cert-manager returned a chain that does not hold together")
        if not anchors or not keys.is_signed_by(anchors[0], anchors[0]):
            raise self._failed(
                f"the issuer {self._issuer.name} gives no root (status.ca) that its certificates lead to"
            )
        if leaf.not_valid_after_utc > min(one.not_valid_after_utc for one in [*chain, *anchors]):
            raise self._failed("cert-manager returned a certificate that outlives its issuer")
        return Issued(leaf, tuple(chain), tuple(anchors))

    def _certificates(self, status: Mapping[str, Any], field: str) -> list[x509.Certificate]:
        try:
            return keys.load_certificates(base64.b64decode(status[field], validate=True))
        except (ValueError, TypeError) as error:
            raise self._failed(f"status.{field} of the CertificateRequest cannot be read: {error}") from error

    # --- what the leader looks after

    def _roots_changed(self) -> None:
        self._metrics.ca_roots.set(len(self._bundle.roots))
        self._metrics.ca_expiry.labels("root").set(_end(self._bundle.roots))
        self.on_issuer()

    async def _look_after(self) -> None:
        said, sweep_at = "", 0.0
        while True:
            is_mine = self._is_leader() and bool(self._bundle.roots)
            try:
                if is_mine and self.condition != said:
                    said = self.condition
                    await self._bundle.note(said)
                if is_mine and time.monotonic() >= sweep_at:
                    await self._bundle.note(said)  # also drops roots that are too old
                    await self._sweep()
                    sweep_at = time.monotonic() + _SWEEP_S
            except ApiFault as fault:
                log.warning("certificates cannot be looked after: %s", fault)
                said = ""
            said = said if is_mine else ""
            await asyncio.sleep(_LOOK_S)

    @property
    def condition(self) -> str:
        """`Ready`, or the worst that there is to say."""
        if self._fault:
            return f"Faulty: {self._fault}"
        return expiring(self._above, self._clock()) or "Ready"

    async def _sweep(self) -> None:
        async for page in self._api.pages(Selection(REQUESTS, self._namespace, label_selector=_SELECTOR)):
            for request in page:
                made = datetime.datetime.fromisoformat(request["metadata"]["creationTimestamp"])
                if self._clock() - made > _LEFT_AFTER:
                    await self._remove(str(request["metadata"]["name"]))


def _names_only(csr: x509.CertificateSigningRequest, names: list[x509.GeneralName]) -> bool:
    """The CSR has these alternative names and no other extension."""
    if len(csr.extensions) != 1:
        return False
    value = csr.extensions[0].value
    return isinstance(value, x509.SubjectAlternativeName) and list(value) == names


def _has_exactly(leaf: x509.Certificate, names: x509.SubjectAlternativeName) -> bool:
    try:
        return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == names
    except x509.ExtensionNotFound:
        return False


def _message(condition: Mapping[str, Any]) -> str:
    return str(condition.get("message") or condition.get("reason") or "no reason given")[:300]


def _end(certificates: Sequence[x509.Certificate]) -> float:
    return min(one.not_valid_after_utc for one in certificates).timestamp()
