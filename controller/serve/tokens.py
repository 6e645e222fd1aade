"""Callers that show a service account token: the API server says whose it is, and to which pod and node it is bound.

A component of a node is a pod of an account in `--node-accounts`. Its node is what the API server wrote into the token
(`authentication.kubernetes.io/node-name`), or, where it writes none, the node of the token's pod in the index; when
both are known they must agree. Everybody else is a workload that speaks for itself.

A good answer is kept for a minute, never longer than the token itself lives, and a bad one for a few seconds, both by
the token's hash and in bounded numbers, apart from each other: a flood of bad tokens does not push good ones out. How
many reviews run and wait at once is bounded too. What cannot be decided because the API server is away is `Undecided`,
never a refusal, unless the API server found the same token good within the hour: a ztunnel that is restarted during an
outage comes back with its token, and its node's traffic waits for it. A caller that was let in keeps its stream.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controller.serve.callers import Caller, Context, Unauthenticated, Undecided
from mesh.identity import Identity, InvalidIdentity

log = logging.getLogger(__name__)

GOOD_FOR_S = 60.0
BAD_FOR_S = 5.0
# While the API server gives no verdict, its last good one stands for this long: an outage, and the half hour between
# two streams of a node before it.
STANDS_FOR_S = 3600.0
MAX_KEPT = 4096
MAX_WAITING = 256

# kube-apiserver's own tokens have about 1 KiB.
MAX_TOKEN_BYTES = 16 * 1024

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ACCOUNT = "system:serviceaccount:"
_EXTRA = "authentication.kubernetes.io/"


class ReviewUnavailable(Exception):
    """The API server gave no verdict; the message says why."""


class Reviewer(Protocol):
    """Asks an API server about tokens."""

    async def review(self, token: str, audiences: Sequence[str]) -> Mapping[str, Any]:
        """The `status` of a TokenReview; raises ReviewUnavailable."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose token it is, as the API server says."""

    namespace: str
    account: str
    pod: str = ""
    pod_uid: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class _Verdict:
    until: float  # on the monotonic clock
    stands_until: float  # the same, while no other can be had
    holder: Holder | None
    reason: str = ""
    sentence: str = ""


# namespace, pod, uid -> the node that it runs on, "" if it is not known
NodeOf = Callable[[str, str, str], str]


@dataclass(frozen=True, slots=True)
class Accounts:
    """Who is who: `namespace/account` of node components, and of those that may read configuration besides."""

    trust_domain: str
    nodes: Collection[str]
    readers: Collection[str] = ()


class ServiceAccountTokens:
    """Authenticates by `authorization: Bearer <token>`."""

    def __init__(self, reviews: "TokenReviews", accounts: Accounts, node_of: NodeOf) -> None:
        self._reviews = reviews
        self._accounts = accounts
        self._node_of = node_of

    async def authenticate(self, context: Context) -> Caller:
        """The holder of the token; raises Unauthenticated or Undecided."""
        holder = await self._reviews.holder(_bearer(context))
        name = f"{holder.namespace}/{holder.account}"
        try:
            identity = Identity(self._accounts.trust_domain, holder.namespace, holder.account)
        except InvalidIdentity as error:
            raise Unauthenticated("not_an_account", str(error)) from error
        is_node = name in self._accounts.nodes
        node = self._node(holder, identity) if is_node else holder.node
        return Caller(node, identity, is_node, is_node or name in self._accounts.readers)

    def _node(self, holder: Holder, identity: Identity) -> str:
        indexed = self._node_of(holder.namespace, holder.pod, holder.pod_uid) if holder.pod else ""
        if holder.node and indexed and holder.node != indexed:
            sentence = f"the token of {identity} is bound to node {holder.node}, its pod {holder.pod} to {indexed}"
            raise Unauthenticated("node_disagrees", sentence)
        if not (holder.node or indexed):
            bound = f"its pod {holder.pod} is not known here" if holder.pod else "it is bound to no pod"
            raise Unauthenticated("node_unknown", f"the token of {identity} leads to no node: {bound}")
        return holder.node or indexed


class TokenReviews:
    """Verdicts about tokens, remembered for a while."""

    def __init__(
        self,
        reviewer: Reviewer,
        audiences: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._reviewer = reviewer
        self._audiences = tuple(audiences)
        self._clock = clock
        self._wall = wall
        self._good: dict[bytes, _Verdict] = {}
        self._bad: dict[bytes, _Verdict] = {}
        self._under_way: dict[bytes, asyncio.Lock] = {}

    async def holder(self, token: str) -> Holder:
        """Whose token it is; raises Unauthenticated or Undecided."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        verdict = self._kept(digest) or await self._review(digest, token)
        if verdict.holder is None:
            raise Unauthenticated(verdict.reason, verdict.sentence)
        return verdict.holder

    async def _review(self, digest: bytes, token: str) -> _Verdict:
        """One review per token at a time; who waits for it takes its verdict."""
        if digest not in self._under_way and len(self._under_way) >= MAX_WAITING:
            raise Undecided(f"{MAX_WAITING} tokens are being reviewed")
        lock = self._under_way.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                if (kept := self._kept(digest)) is not None:
                    return kept
                try:
                    status = await self._reviewer.review(token, self._audiences)
                except ReviewUnavailable as error:
                    return self._last_word(digest, error)
                verdict = self._judge(status, token)
                self._good.pop(digest, None)
                _keep(self._bad if verdict.holder is None else self._good, digest, verdict)
                return verdict
        finally:
            if not lock.locked():
                self._under_way.pop(digest, None)

    def _kept(self, digest: bytes) -> _Verdict | None:
        for kept in (self._good, self._bad):
            verdict = kept.get(digest)
            if verdict is not None and verdict.until > self._clock():
                return verdict
        return None

    def _last_word(self, digest: bytes, error: ReviewUnavailable) -> _Verdict:
        verdict = self._good.get(digest)
        if verdict is None or verdict.holder is None or verdict.stands_until <= self._clock():
            raise Undecided(f"the token cannot be reviewed now: {error}") from error
        holder = verdict.holder
        log.warning("the token of %s/%s is taken as it was found before: %s", holder.namespace, holder.account, error)
        return verdict

    def _judge(self, status: Mapping[str, Any], token: str) -> _Verdict:
        now = self._clock()
        bad_until = now + BAD_FOR_S
        if not status.get("authenticated"):
            why = str(status.get("error") or "not a valid token")[:200]
            return _Verdict(bad_until, bad_until, None, "token", f"the API server refuses the token: {why}")
        # An authenticator that knows nothing of audiences answers without them: then nobody has checked ours.
        if not set(self._audiences) & set(status.get("audiences") or ()):
            return _Verdict(
                bad_until, bad_until, None, "audience", f"the token is not for {' or '.join(self._audiences)}"
            )
        holder = _holder(status.get("user") or {})
        if holder is None:
            return _Verdict(bad_until, bad_until, None, "not_an_account", "the token is not one of a service account")
        life_s = max(0.0, _expiry(token) - self._wall())
        return _Verdict(now + min(GOOD_FOR_S, life_s), now + min(STANDS_FOR_S, life_s), holder)


def _keep(kept: dict[bytes, _Verdict], digest: bytes, verdict: _Verdict) -> None:
    kept.pop(digest, None)
    if len(kept) >= MAX_KEPT:
        del kept[next(iter(kept))]
    kept[digest] = verdict


def _bearer(context: Context) -> str:
    shown = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
    if not shown:
        raise Unauthenticated("no_token", "no bearer token (metadata authorization)")
    text = shown[0] if isinstance(shown[0], str) else ""
    scheme, _, token = text.partition(" ")
    token = token.strip()
    if len(shown) > 1 or scheme.lower() != "bearer" or len(token) > MAX_TOKEN_BYTES or not _JWT.fullmatch(token):
        raise Unauthenticated("malformed", "the metadata authorization is not one `Bearer <service account token>`")
    return token


def _holder(user: Mapping[str, Any]) -> Holder | None:
    name = str(user.get("username", ""))
    namespace, _, account = name.removeprefix(_ACCOUNT).partition(":")
    if not name.startswith(_ACCOUNT) or not namespace or not account:
        return None
    return Holder(namespace, account, _extra(user, "pod-name"), _extra(user, "pod-uid"), _extra(user, "node-name"))


def _extra(user: Mapping[str, Any], name: str) -> str:
    values: Sequence[Any] = (user.get("extra") or {}).get(_EXTRA + name) or ()
    return str(values[0]) if len(values) == 1 else ""


def _expiry(token: str) -> float:
    """When a token that was found good expires, in seconds of the epoch; far away if it does not say."""
    payload = token.split(".")[1]
    try:
        expiry = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).get("exp")
    except (ValueError, AttributeError):
        return float("inf")
    return float(expiry) if isinstance(expiry, int | float) else float("inf")
