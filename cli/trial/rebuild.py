"""A node's policies from its `/config_dump`, as decisions are made with them: the way back of ztunnel.admin.dump."""

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from mesh.addresses import to_bytes16
from ztunnel.model import AccountMatch, Clause, How, Match, Policy, PolicyScope, Prefix, Rule, StringMatch

_SCOPES = {
    "Global": PolicyScope.GLOBAL,
    "Namespace": PolicyScope.NAMESPACE,
    "WorkloadSelector": PolicyScope.WORKLOAD_SELECTOR,
}


def policy(found: dict[str, Any]) -> Policy:
    """One policy; raises KeyError or ValueError for what no dump of this version says."""
    return Policy(
        local_name=found["name"],
        namespace=found["namespace"],
        scope=_SCOPES[found["scope"]],
        deny=found["action"] == "Deny",
        dry_run=found["dryRun"],
        rules=tuple(_rule(rule) for rule in found["rules"]),
        fault=found["fault"],
    )


def _rule(clauses: Iterable[Any]) -> Rule:
    return tuple(_clause(clause) for clause in clauses)


def _clause(matches: Iterable[dict[str, Any]]) -> Clause:
    return tuple(_match(match) for match in matches)


def _match(found: dict[str, Any]) -> Match:
    return Match(
        namespaces=_strings(found, "namespaces"),
        not_namespaces=_strings(found, "notNamespaces"),
        principals=_strings(found, "principals"),
        not_principals=_strings(found, "notPrincipals"),
        source_ips=_prefixes(found, "sourceIps"),
        not_source_ips=_prefixes(found, "notSourceIps"),
        destination_ips=_prefixes(found, "destinationIps"),
        not_destination_ips=_prefixes(found, "notDestinationIps"),
        destination_ports=tuple(found.get("destinationPorts", ())),
        not_destination_ports=tuple(found.get("notDestinationPorts", ())),
        service_accounts=_accounts(found, "serviceAccounts"),
        not_service_accounts=_accounts(found, "notServiceAccounts"),
    )


def _strings(found: dict[str, Any], key: str) -> tuple[StringMatch, ...]:
    pairs = [pair for entry in found.get(key, ()) for pair in entry.items()]
    return tuple(StringMatch(How[how.upper()], value or "") for how, value in pairs)


def _prefixes(found: dict[str, Any], key: str) -> tuple[Prefix, ...]:
    return tuple(_prefix(text) for text in found.get(key, ()))


def _prefix(text: str) -> Prefix:
    network = ip_network(text, strict=False)
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return Prefix(to_bytes16(network.network_address), length)


def _accounts(found: dict[str, Any], key: str) -> tuple[AccountMatch, ...]:
    return tuple(AccountMatch(*text.split("/", 1)) for text in found.get(key, ()))
