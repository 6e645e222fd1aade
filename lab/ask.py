"""The client's side of the supervisor's socket: an order is one JSON line, so is the answer."""

import json
import socket
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The order cannot be carried out, for a reason that the user can act on."""


class SupervisorGone(Exception):
    """Nobody answers on the lab's socket."""


def ask(path: Path, order: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
    """Send an order and return the answer; raises Refused, and SupervisorGone when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(order).encode() + b"\n")
            with sock.makefile("rb") as reader:
                line = reader.readline()
        except TimeoutError as error:
            raise Refused(f"the lab's supervisor has not answered within {timeout_s:g} s") from error
        except OSError as error:
            raise SupervisorGone(str(error)) from error
    if not line:
        raise SupervisorGone("it ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise Refused(answer["error"])
    return answer
