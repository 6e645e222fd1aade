"""What a supervisor is told of the machines its lab spans."""

import json
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

PORT = 15099


@dataclass(frozen=True, slots=True)
class Span:
    """Empty for a lab on one machine. `listen` makes this machine the home, `join` makes it a joined one."""

    listen: str = ""
    join: str = ""
    local: tuple[str, ...] = ()
    token_file: str = ""

    def to_json(self) -> str:
        """As one argument of the supervisor."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Span":
        """Read what `to_json` wrote."""
        given: dict[str, Any] = json.loads(text)
        return cls(**{**given, "local": tuple(given.get("local", ()))})


def endpoint(text: str) -> tuple[str, int]:
    """`ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; raises ValueError."""
    address, port = text, str(PORT)
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        address, port = text.split(":")
    ip = ip_address(address)
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError(f"{address} is no address of one machine")
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is not a port")
    return str(ip), int(port)
