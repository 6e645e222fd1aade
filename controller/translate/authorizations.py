"""AuthorizationPolicies to what a node enforces (L4), and what to tell their authors about the rest.

A node knows addresses, ports and identities. What needs a request (hosts, methods, paths, headers, tokens) is left
out, always towards the stricter side where the wire has one: an ALLOW rule with such a field is dropped whole; of a
DENY rule only the field is dropped. A DENY match of which nothing remains is sent empty, as Istio sends it, and an
empty match matches nothing: its author is told that it has no effect without a waypoint.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from controller.index.objects import Action, AuthorizationPolicy, Match, Rule
from controller.translate.facts import Mesh
from mesh.identity import DEFAULT_TRUST_DOMAIN
from mesh.wire.authorization_pb2 import Action as WireAction
from mesh.wire.authorization_pb2 import Address, Authorization, Clause, Scope, ServiceAccountMatch, StringMatch
from mesh.wire.authorization_pb2 import Match as WireMatch
from mesh.wire.authorization_pb2 import Rule as WireRule

_WAYPOINT = "only a waypoint can check these"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a policy: `accepted` is false if nothing of it is enforced; the message is for its author."""

    accepted: bool
    reason: str = "Accepted"
    message: str = ""


def is_enforced_at_nodes(policy: AuthorizationPolicy) -> bool:
    """A node gets the policy at all."""
    return not policy.targets and policy.action in (Action.ALLOW, Action.DENY)


def authorization(policy: AuthorizationPolicy, mesh: Mesh) -> Authorization | None:
    """The announced form of a policy; None if nodes have no part in it."""
    if not is_enforced_at_nodes(policy):
        return None
    return Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=_scope(policy, mesh),
        action=WireAction.DENY if policy.action is Action.DENY else WireAction.ALLOW,
        rules=[_rule(rule, mesh) for rule in policy.rules if not _is_dropped(policy, rule)],
        dry_run=policy.is_dry_run,
    )


def judge(policy: AuthorizationPolicy) -> Verdict:
    """What the policy's author should know."""
    if policy.targets:
        targets = ", ".join(policy.targets)
        return Verdict(False, "WaypointRequired", f"attached to {targets}: enforced by its waypoint, and there is none")
    if policy.action not in (Action.ALLOW, Action.DENY):
        return Verdict(
            False, "UnsupportedAction", f"action {policy.action.value} is not supported: nothing is enforced"
        )
    faults = [fault for number, rule in enumerate(policy.rules) for fault in _judge_rule(policy, number, rule)]
    if faults:
        return Verdict(True, "PartiallyEnforced", "; ".join(faults))
    if policy.is_dry_run:
        return Verdict(True, "DryRun", "evaluated and logged, not enforced")
    return Verdict(True)


def _judge_rule(policy: AuthorizationPolicy, number: int, rule: Rule) -> Iterable[str]:
    fields = sorted({name for match in _matches(rule) for name in match.l7})
    if fields:
        names = ", ".join(fields)
        if policy.action is Action.ALLOW:
            yield f"rules[{number}] is left out: {names} ({_WAYPOINT})"
        elif any(_is_void(clause) for clause in (rule.to, rule.sources, *((one,) for one in rule.when))):
            yield f"rules[{number}] has no effect: nothing else is left beside {names} ({_WAYPOINT})"
        else:
            yield f"rules[{number}] denies more than written: {names} left out ({_WAYPOINT})"
    for match in _matches(rule):
        for principal in (*match.principals, *match.not_principals):
            if principal.startswith("spiffe://"):
                yield f"rules[{number}]: principal {principal!r} never matches: principals start at the trust domain"


def _matches(rule: Rule) -> Iterable[Match]:
    return (*rule.to, *rule.sources, *rule.when)


def _is_void(matches: tuple[Match, ...]) -> bool:
    """Nothing in the clause can match: its only matches are empty once L7 fields are gone."""
    return bool(matches) and all(match == Match(l7=match.l7) for match in matches)


def _is_dropped(policy: AuthorizationPolicy, rule: Rule) -> bool:
    return policy.action is Action.ALLOW and any(match.l7 for match in _matches(rule))


def _scope(policy: AuthorizationPolicy, mesh: Mesh) -> Scope:
    if policy.selector is not None:
        return Scope.WORKLOAD_SELECTOR
    return Scope.GLOBAL if policy.namespace == mesh.root_namespace else Scope.NAMESPACE


def _rule(rule: Rule, mesh: Mesh) -> WireRule:
    clauses = [rule.to, rule.sources, *((condition,) for condition in rule.when)]
    return WireRule(clauses=[Clause(matches=[_match(one, mesh) for one in clause]) for clause in clauses if clause])


def _match(match: Match, mesh: Mesh) -> WireMatch:
    return WireMatch(
        namespaces=_strings(match.namespaces),
        not_namespaces=_strings(match.not_namespaces),
        principals=_strings(_local(match.principals, mesh)),
        not_principals=_strings(_local(match.not_principals, mesh)),
        service_accounts=_accounts(match.service_accounts),
        not_service_accounts=_accounts(match.not_service_accounts),
        source_ips=_addresses(match.source_blocks),
        not_source_ips=_addresses(match.not_source_blocks),
        destination_ips=_addresses(match.destination_blocks),
        not_destination_ips=_addresses(match.not_destination_blocks),
        destination_ports=match.ports,
        not_destination_ports=match.not_ports,
    )


def _local(principals: Iterable[str], mesh: Mesh) -> Iterable[str]:
    """`cluster.local` in a principal means the mesh's own trust domain, whatever that is called."""
    pointer = f"{DEFAULT_TRUST_DOMAIN}/"
    return (
        f"{mesh.trust_domain}/{principal.removeprefix(pointer)}" if principal.startswith(pointer) else principal
        for principal in principals
    )


def _strings(values: Iterable[str]) -> list[StringMatch]:
    return [_string(value) for value in values]


def _string(value: str) -> StringMatch:
    if value == "*":
        message = StringMatch()
        message.presence.SetInParent()
        return message
    if value.startswith("*"):
        return StringMatch(suffix=value[1:])
    if value.endswith("*"):
        return StringMatch(prefix=value[:-1])
    return StringMatch(exact=value)


def _accounts(values: Iterable[tuple[str, str]]) -> list[ServiceAccountMatch]:
    return [ServiceAccountMatch(namespace=namespace, serviceAccount=name) for namespace, name in values]


def _addresses(blocks: Iterable[tuple[bytes, int]]) -> list[Address]:
    return [Address(address=address, length=length) for address, length in blocks]
