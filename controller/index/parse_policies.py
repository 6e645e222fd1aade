"""Documents of security.istio.io to objects.

Unlike with the core API, an unknown field is a fault: a misspelt condition that vanished would leave a policy that
matches more, or less, than its author meant. Fields that are known but need a waypoint are kept in `Match.l7`.
"""

from collections.abc import Callable
from ipaddress import ip_network

from controller.index.fields import Field
from controller.index.objects import (
    Action,
    AuthorizationPolicy,
    Labels,
    Match,
    Mode,
    PeerAuthentication,
    Rule,
)

DRY_RUN = "istio.io/dry-run"

_SOURCE_L4 = ("principals", "namespaces", "ipBlocks", "serviceAccounts")
_SOURCE_L7 = ("requestPrincipals", "remoteIpBlocks", "trustDomains")
_OPERATION_L7 = ("hosts", "methods", "paths")


def authorization_policy(field: Field) -> AuthorizationPolicy:
    """Read an AuthorizationPolicy; raises ObjectFault."""
    metadata, spec = field["metadata"], field["spec"]
    spec.only(("selector", "targetRef", "targetRefs", "action", "rules", "provider"))
    namespace = metadata["namespace"].text("default")
    return AuthorizationPolicy(
        namespace=namespace,
        name=metadata["name"].required_text(),
        action=_action(spec["action"]),
        selector=_selector(spec["selector"]),
        targets=_targets(spec),
        is_dry_run=_dry_run(metadata["annotations"][DRY_RUN]),
        rules=tuple(_rule(item, namespace) for item in spec["rules"].items()),
    )


def peer_authentication(field: Field) -> PeerAuthentication:
    """Read a PeerAuthentication; raises ObjectFault."""
    metadata = field["metadata"]
    spec = field["spec"].only(("selector", "mtls", "portLevelMtls"))
    selector = _selector(spec["selector"])
    ports = tuple(sorted(_port_modes(spec["portLevelMtls"]), key=lambda entry: entry[0]))
    if ports and not selector:
        raise spec["portLevelMtls"].fault("needs a selector: only a policy for chosen workloads may name ports")
    return PeerAuthentication(
        namespace=metadata["namespace"].text("default"),
        name=metadata["name"].required_text(),
        selector=selector,
        mode=_mode(spec["mtls"]),
        ports=ports,
        created=metadata["creationTimestamp"].text() if isinstance(metadata["creationTimestamp"].value, str) else "",
    )


def _selector(field: Field) -> Labels | None:
    if not field.is_set:
        return None
    return field.only(("matchLabels",))["matchLabels"].labels()


def _action(field: Field) -> Action:
    text = field.text("ALLOW")
    try:
        return Action(text)
    except ValueError:
        raise field.fault(f"{text!r} is none of {', '.join(action.value for action in Action)}") from None


def _dry_run(field: Field) -> bool:
    text = field.text()
    if text in ("", "false", "False", "FALSE", "f", "F", "0"):
        return False
    if text in ("true", "True", "TRUE", "t", "T", "1"):
        return True
    raise field.fault(f"{text!r} is neither true nor false")


def _targets(spec: Field) -> tuple[str, ...]:
    listed = list(spec["targetRefs"].items())
    if spec["targetRef"].is_set:
        listed.append(spec["targetRef"])
    return tuple(f"{item['kind'].required_text()} {item['name'].required_text()}" for item in listed)


def _rule(field: Field, namespace: str) -> Rule:
    field.only(("from", "to", "when"))
    return Rule(
        to=tuple(_operation(item.only(("operation",))["operation"]) for item in field["to"].items()),
        sources=tuple(_source(item.only(("source",))["source"], namespace) for item in field["from"].items()),
        when=tuple(_condition(item) for item in field["when"].items()),
    )


def _source(field: Field, namespace: str) -> Match:
    names = (*_SOURCE_L4, *_SOURCE_L7)
    field.only((*names, *(_negated(name) for name in names)))
    return Match(
        principals=field["principals"].texts(),
        not_principals=field["notPrincipals"].texts(),
        namespaces=field["namespaces"].texts(),
        not_namespaces=field["notNamespaces"].texts(),
        service_accounts=_accounts(field["serviceAccounts"], namespace),
        not_service_accounts=_accounts(field["notServiceAccounts"], namespace),
        source_blocks=_blocks(field["ipBlocks"]),
        not_source_blocks=_blocks(field["notIpBlocks"]),
        l7=_l7(field, _SOURCE_L7),
    )


def _operation(field: Field) -> Match:
    names = (*_OPERATION_L7, "ports")
    field.only((*names, *(_negated(name) for name in names)))
    return Match(ports=_ports(field["ports"]), not_ports=_ports(field["notPorts"]), l7=_l7(field, _OPERATION_L7))


_CONDITIONS: dict[str, Callable[[Field, Field], Match]] = {
    "source.namespace": lambda yes, no: Match(namespaces=yes.texts(), not_namespaces=no.texts()),
    "source.principal": lambda yes, no: Match(principals=yes.texts(), not_principals=no.texts()),
    "source.ip": lambda yes, no: Match(source_blocks=_blocks(yes), not_source_blocks=_blocks(no)),
    "destination.ip": lambda yes, no: Match(destination_blocks=_blocks(yes), not_destination_blocks=_blocks(no)),
    "destination.port": lambda yes, no: Match(ports=_ports(yes), not_ports=_ports(no)),
}


def _condition(field: Field) -> Match:
    field.only(("key", "values", "notValues"))
    key = field["key"].required_text()
    values, not_values = field["values"], field["notValues"]
    if not list(values.items()) and not list(not_values.items()):
        raise field.fault("has neither values nor notValues")
    known = _CONDITIONS.get(key)
    return known(values, not_values) if known else Match(l7=(key,))


def _negated(name: str) -> str:
    return "not" + name[0].upper() + name[1:]


def _l7(field: Field, names: tuple[str, ...]) -> tuple[str, ...]:
    both = [spelled for name in names for spelled in (name, _negated(name))]
    return tuple(name for name in both if field[name].texts())


def _accounts(field: Field, namespace: str) -> tuple[tuple[str, str], ...]:
    """`namespace/account`, or an account of the policy's own namespace."""
    found = []
    for text in field.texts():
        left, slash, right = text.partition("/")
        found.append((left, right) if slash else (namespace, left))
    return tuple(found)


def _blocks(field: Field) -> tuple[tuple[bytes, int], ...]:
    found = []
    for item in field.items():
        text = item.required_text()
        try:
            block = ip_network(text, strict=False)
        except ValueError:
            raise item.fault(f"{text!r} is neither an IP address nor a CIDR block") from None
        written = text.partition("/")[0]
        found.append((ip_network(written).network_address.packed, block.prefixlen))
    return tuple(found)


def _ports(field: Field) -> tuple[int, ...]:
    return tuple(item.port() for item in field.items())


def _mode(field: Field) -> Mode:
    text = field.only(("mode",))["mode"].text("UNSET")
    try:
        return Mode(text)
    except ValueError:
        raise field["mode"].fault(f"{text!r} is none of {', '.join(mode.value for mode in Mode)}") from None


def _port_modes(field: Field) -> list[tuple[int, Mode]]:
    return [(Field(key, value.path).port(), _mode(value)) for key, value in field.entries()]
