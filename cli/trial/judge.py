"""What policies of a file would have done to flows that nodes have seen. The decision is ztunnel's own, in Python."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cli.trial.rebuild import policy as rebuilt
from controller.index.objects import AuthorizationPolicy, Kind, selects
from controller.sources.documents import read_manifest
from controller.translate.authorizations import authorization, judge
from controller.translate.facts import Mesh
from mesh.addresses import to_bytes16
from ztunnel.decide import Destination, Peer, inbound
from ztunnel.model import Policy, PolicyScope
from ztunnel.parse import parse_policy
from ztunnel.view import View


class BadPolicies(Exception):
    """The file cannot be tried; the message says why, a line with file, document and field for each reason."""


class LabelsUnknown(Exception):
    """A policy has a selector, and nobody says what labels the pods have."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A policy of the file: as its author wrote it and as nodes would have it (None: they have no part in it)."""

    written: AuthorizationPolicy
    enforced: Policy | None
    remark: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One flow, and what would become of it."""

    flow: Mapping[str, Any]
    allowed: bool
    because: str

    @property
    def is_changed(self) -> bool:
        """Whether it would be treated otherwise than it was."""
        return self.allowed is not bool(self.flow["allowed"])


def read(text: str, name: str) -> list[AuthorizationPolicy]:
    """The policies of a file called `name`; raises BadPolicies."""
    manifest = read_manifest(text, name)
    lines = [str(fault) for fault in manifest.faults]
    others = {manifest.places[key]: key[0].value for key in manifest.objects if key[0] is not Kind.AUTHORIZATION_POLICY}
    for place, kind in {**manifest.unknown_kinds, **others}.items():
        lines.append(f"{place}: kind: {kind!r} cannot be tried, only AuthorizationPolicy of security.istio.io/v1")
    found = [one for one in manifest.objects.values() if isinstance(one, AuthorizationPolicy)]
    if not found and not lines:
        lines.append(f"{name}: holds no AuthorizationPolicy")
    if lines:
        raise BadPolicies("\n".join(lines))
    return found


def translated(written: AuthorizationPolicy, mesh: Mesh) -> Tried:
    """A policy as nodes of that mesh would have it."""
    message = authorization(written, mesh)
    name = f"{written.namespace}/{written.name}"
    enforced = parse_policy(name, message.SerializeToString()) if message is not None else None
    return Tried(written, enforced, judge(written).message)


class Node:
    """What one node goes by, from its `/config_dump`."""

    def __init__(self, dump: Mapping[str, Any]) -> None:
        self._policies = [rebuilt(one) for one in dump["policies"]]
        self._selected = {one["uid"]: set(one["authorizationPolicies"]) for one in dump["workloads"]}

    def judged(
        self, flow: Mapping[str, Any], tried: Sequence[Tried], labels: Mapping[str, str] | None, root: str
    ) -> Judged:
        """One flow under the node's policies with those of the file put in; `labels` are its pod's."""
        replaced = {f"{one.written.namespace}/{one.written.name}" for one in tried}
        selected = self._selected.get(flow["uid"], set())
        policies = [
            one for one in self._policies if one.name not in replaced and _is_for(one, flow["namespace"], selected)
        ]
        for one in tried:
            if one.enforced is not None and _applies(one, flow["namespace"], labels, root):
                policies.append(one.enforced)
        policies.sort(key=lambda one: one.name)
        peer = Peer(flow["identity"], to_bytes16(flow["source"]))
        view = cast(View, _Policies(policies))
        verdict = inbound(view, 0, peer, Destination(to_bytes16(flow["address"]), flow["port"]))
        return Judged(flow, verdict.allow, "; ".join(verdict.trail))


class _Policies:
    """As much of a View as a decision about one pod looks at."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies
        self.policy_faults: Mapping[str, str] = {}  # the dump shows those apart

    def workload(self, number: int) -> object:
        """The pod, of which nothing is asked."""
        return self

    def policies_of(self, workload: object) -> Iterable[int]:
        """Numbers from 1: 0 is nothing."""
        return range(1, len(self._policies) + 1)

    def policy(self, number: int) -> Policy | None:
        """The policy of a number."""
        return self._policies[number - 1] if number else None


def _is_for(policy: Policy, namespace: str, selected: Iterable[str]) -> bool:
    if policy.scope is PolicyScope.WORKLOAD_SELECTOR:
        return policy.name in selected
    return policy.scope is PolicyScope.GLOBAL or policy.namespace == namespace


def _applies(tried: Tried, namespace: str, labels: Mapping[str, str] | None, root: str) -> bool:
    written = tried.written
    if written.namespace not in (namespace, root):
        return False
    if not written.selector:
        return True
    if labels is None:
        raise LabelsUnknown(f"{written.namespace}/{written.name} has a selector, and pods' labels are not known here")
    return selects(written.selector, labels)
