"""What culvert-cni.c says and hears: two packets in, one packet out (SOCK_SEQPACKET).

The first packet is a small JSON object with CNI's variables, with the descriptor of the pod's network namespace; the
second is the network configuration as the runtime gave it. The answer is one digit, the plugin's exit status, and the
text that it prints. Pure; whoever takes a Call owns its descriptor.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_interface
from typing import Any

from mesh.addresses import IPAddress

MAX_HEADER_BYTES = 16 << 10
MAX_CONFIG_BYTES = 128 << 10
COMMANDS = ("ADD", "DEL", "CHECK")


class Code(IntEnum):
    """Error codes of the CNI specification."""

    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11


class Refused(Exception):
    """The plugin fails with this code and sentence."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the plugin."""

    command: str
    container: str  # id of the pod's sandbox
    namespace: str
    name: str
    uid: str  # as the runtime knows it: of a static pod not the one in the API; empty with old runtimes
    netns: int | None  # descriptor, not yet looked at
    previous: Mapping[str, Any] | None  # result of the plugins before
    version: str

    @property
    def full_name(self) -> str:
        """`namespace/name`, as people name it."""
        return f"{self.namespace}/{self.name}"

    def addresses(self) -> tuple[IPAddress, ...]:
        """What the plugins before gave to the pod; raises Refused."""
        try:
            entries = (self.previous or {}).get("ips", [])
            return tuple(ip_interface(entry["address"]).ip for entry in entries)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Refused(Code.INVALID_CONFIG, f"the previous result's ips cannot be read: {error}") from error


def parse(header: bytes, descriptors: Sequence[int], config: bytes) -> Call:
    """A call of its two packets; raises Refused. The descriptor stays the caller's if it does."""
    variables, network = _object(header, "the plugin's header"), _object(config, "the network configuration")
    arguments = dict(part.partition("=")[::2] for part in _text(variables, "arguments").split(";"))
    command = _text(variables, "command")
    if command not in COMMANDS:
        raise Refused(Code.DECODING_FAILURE, f"command {command!r} is none of {', '.join(COMMANDS)}")
    if command == "ADD" and len(descriptors) != 1:
        raise Refused(Code.DECODING_FAILURE, f"ADD came with {len(descriptors)} descriptors, not with one")
    previous = network.get("prevResult")
    if command == "ADD" and not isinstance(previous, dict):
        raise Refused(Code.INVALID_CONFIG, "there is no result of a plugin before culvert-cni: it must not stand first")
    return Call(
        command=command,
        container=_text(variables, "container"),
        namespace=arguments.get("K8S_POD_NAMESPACE", ""),
        name=arguments.get("K8S_POD_NAME", ""),
        uid=arguments.get("K8S_POD_UID", ""),
        netns=descriptors[0] if descriptors else None,
        previous=previous if isinstance(previous, dict) else None,
        version=_text(network, "cniVersion"),
    )


def success(call: Call) -> bytes:
    """The answer that lets the pod start, or that has nothing to say."""
    return b"0" + (json.dumps(call.previous).encode() + b"\n" if call.command == "ADD" else b"")


def failure(refused: Refused, version: str = "1.0.0") -> bytes:
    """The answer that does not."""
    document = {"cniVersion": version, "code": int(refused.code), "msg": str(refused)}
    return b"1" + json.dumps(document).encode() + b"\n"


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(Code.DECODING_FAILURE, f"{what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Refused(Code.DECODING_FAILURE, f"{what} is not an object")
    return document


def _text(document: Mapping[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str):
        raise Refused(Code.DECODING_FAILURE, f"{field} is not a text")
    return value
