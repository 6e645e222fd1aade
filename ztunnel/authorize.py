"""Whether a policy matches a connection: the boolean structure of AuthorizationPolicy, one function per level.

A policy matches if any rule does; a rule if all of its clauses do; a clause if any of its matches does; a match if all
of its fields that are not empty do. What is empty reads differently on each level, which is where mistakes are made:
no rules never match, no clauses and no matches always do, a match without fields never does.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ztunnel.model import AccountMatch, Clause, How, Match, Policy, Prefix, Rule, StringMatch, is_ipv4

T = TypeVar("T")

_WORKLOAD_ID = re.compile(r"spiffe://([^/]+/ns/([^/]+)/sa/([^/]+))")


@dataclass(frozen=True, slots=True)
class Connection:
    """What policies look at. Without an authenticated peer principal, namespace and account are None."""

    principal: str | None  # without spiffe://
    namespace: str | None
    service_account: str | None
    source_ip: bytes
    destination_ip: bytes
    destination_port: int

    @classmethod
    def of(cls, identity: str | None, source_ip: bytes, destination_ip: bytes, destination_port: int) -> "Connection":
        """A connection of a peer; an identity that is not a workload's SPIFFE id counts as none."""
        found = _WORKLOAD_ID.fullmatch(identity or "")
        principal, namespace, account = found.groups() if found else (None, None, None)
        return cls(principal, namespace, account, source_ip, destination_ip, destination_port)


def policy_matches(policy: Policy, connection: Connection) -> int | None:
    """The position of the first rule that matches, None when none does."""
    for position, rule in enumerate(policy.rules):
        if _rule_matches(rule, connection):
            return position
    return None


def _rule_matches(rule: Rule, connection: Connection) -> bool:
    return all(_clause_matches(clause, connection) for clause in rule)


def _clause_matches(clause: Clause, connection: Connection) -> bool:
    return not clause or any(_match_matches(match, connection) for match in clause)


def _match_matches(match: Match, connection: Connection) -> bool:
    if match == Match():
        return False
    c = connection
    return (
        _holds(match.namespaces, match.not_namespaces, lambda m: _string_matches(m, c.namespace))
        and _holds(match.principals, match.not_principals, lambda m: _string_matches(m, c.principal))
        and _holds(match.source_ips, match.not_source_ips, lambda m: _range_holds(m, c.source_ip))
        and _holds(match.destination_ips, match.not_destination_ips, lambda m: _range_holds(m, c.destination_ip))
        and _holds(match.destination_ports, match.not_destination_ports, lambda port: port == c.destination_port)
        and _holds(match.service_accounts, match.not_service_accounts, lambda m: _account_matches(m, c))
    )


def _holds(wanted: Iterable[T], unwanted: Iterable[T], matches: Callable[[T], bool]) -> bool:
    return (not wanted or any(map(matches, wanted))) and not any(map(matches, unwanted))


def _string_matches(match: StringMatch, value: str | None) -> bool:
    if value is None:
        return False
    if match.how is How.EXACT:
        return value == match.value
    if match.how is How.PREFIX:
        return value.startswith(match.value)
    return match.how is How.PRESENCE or value.endswith(match.value)


def _range_holds(prefix: Prefix, ip: bytes) -> bool:
    """A range of IPv6 never holds an IPv4 address, not even ::/0."""
    if (prefix.length >= 96 and is_ipv4(prefix.ip)) != is_ipv4(ip):
        return False
    shift = 128 - prefix.length
    return int.from_bytes(prefix.ip, "big") >> shift == int.from_bytes(ip, "big") >> shift


def _account_matches(match: AccountMatch, connection: Connection) -> bool:
    return (match.namespace, match.service_account) == (connection.namespace, connection.service_account)
