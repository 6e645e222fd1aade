"""Asks a node's name server whether it has read the names as they are now.

dnsmasq reads its file again some time after a SIGHUP and does not say when. So the file begins with a name that holds
its generation: who gets an answer for that gets answers for everything that stands below it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from lab.plan import DNS4
from mesh import netns

DNS_PORT = 53
ANSWER_S = 0.2
LOOK_EVERY_S = 0.02

_QUERY_FLAGS = 0x0100  # recursion desired
_TYPE_A, _CLASS_IN = 1, 1


def marker(generation: int) -> str:
    """The name that stands for a generation of the file; below a domain that nobody else has."""
    return f"generation-{generation}.lab.culvert.internal"


async def until_read(node: Path, generation: Callable[[], int]) -> None:
    """Return when the name server of a node (its namespace) has read the file of the generation that there is now."""
    while not await _knows(node, marker(generation())):  # noqa: ASYNC110 - dnsmasq has no event to wait for
        await asyncio.sleep(LOOK_EVERY_S)


async def _knows(node: Path, name: str) -> bool:
    """Whether the server answers the name with an address; False too when it does not answer."""
    sock = netns.inside(node, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    with sock:
        number = os.urandom(2)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, (str(DNS4), DNS_PORT))
            await loop.sock_sendall(sock, number + query(name))
            async with asyncio.timeout(ANSWER_S):
                answer = await loop.sock_recv(sock, 512)
        except (OSError, TimeoutError):
            return False
    return answer[:2] == number and has_address(answer)


def query(name: str) -> bytes:
    """A question for an IPv4 address, behind its number."""
    words = [_QUERY_FLAGS, 1, 0, 0, 0]
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"".join(word.to_bytes(2, "big") for word in words) + labels + b"\0" + bytes([0, _TYPE_A, 0, _CLASS_IN])


def has_address(answer: bytes) -> bool:
    """Whether an answer says that the name exists and has at least one record."""
    return len(answer) >= 12 and answer[3] & 0x0F == 0 and int.from_bytes(answer[6:8], "big") > 0
