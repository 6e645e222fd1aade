"""Policies as the bytes that the engine evaluates; engine/src/policy.h gives the format."""

import struct
from collections.abc import Callable, Iterable
from typing import Any

from ztunnel.model import AccountMatch, Match, Policy, Prefix, StringMatch


def encode(policy: Policy) -> bytes:
    """The rules of a policy as a program."""
    return b"".join(
        _node(b"".join(_node(b"".join(_node(_match(match)) for match in clause)) for clause in rule))
        for rule in policy.rules
    )


def _node(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _match(match: Match) -> bytes:
    return b"".join(
        _node(bytes([kind]) + b"".join(map(value, values)))
        for kind, (values, value) in enumerate(_fields(match), 1)
        if values
    )


def _fields(match: Match) -> Iterable[tuple[tuple[Any, ...], Callable[[Any], bytes]]]:
    """Values and their encoder, in the order of the wire's field numbers."""
    yield match.namespaces, _string
    yield match.not_namespaces, _string
    yield match.principals, _string
    yield match.not_principals, _string
    yield match.source_ips, _range
    yield match.not_source_ips, _range
    yield match.destination_ips, _range
    yield match.not_destination_ips, _range
    yield match.destination_ports, _port
    yield match.not_destination_ports, _port
    yield match.service_accounts, _account
    yield match.not_service_accounts, _account


def _string(match: StringMatch) -> bytes:
    return bytes([match.how]) + _text(match.value)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack(">H", len(raw)) + raw


def _range(prefix: Prefix) -> bytes:
    return prefix.ip + bytes([prefix.length])


def _port(port: int) -> bytes:
    return struct.pack(">H", port)


def _account(match: AccountMatch) -> bytes:
    return _text(match.namespace) + _text(match.service_account)
