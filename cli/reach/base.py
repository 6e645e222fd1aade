"""The one view that commands have of a mesh, wherever it runs."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

ZTUNNEL_ADMIN, ZTUNNEL_METRICS, AGENT, CONTROLLER = 15000, 15020, 15022, 15016

# What listens there, for people.
PROCESSES = {ZTUNNEL_ADMIN: "ztunnel", ZTUNNEL_METRICS: "ztunnel", AGENT: "agent"}

# Nodes that are asked at once: answers come through one API server.
_AT_ONCE = 8


class Unreachable(Exception):
    """A process does not answer, or what was named is not there; the message says which and why."""


class Reach(Protocol):
    """Where a mesh is."""

    controllers_may_be_elsewhere: bool  # who sees none from here has nothing to complain of

    def emptiness(self) -> str:
        """What to say when there is no node, and what to do then."""

    def nodes(self) -> list[str]:
        """Names of the nodes that have an agent; raises Unreachable."""

    def get(self, node: str, port: int, path: str) -> bytes:
        """What a process of a node answers on a loopback port; raises Unreachable."""

    def controllers(self) -> list[str]:
        """Names of the controllers that are seen, of which each serves some nodes; raises Unreachable."""

    def get_controller(self, name: str, path: str) -> bytes:
        """What a controller answers on its debug port; raises Unreachable."""

    def place_of(self, source: str) -> tuple[str, str]:
        """A pod (namespace/name) as (its node, namespace/name); raises Unreachable."""

    def pod_labels(self) -> dict[str, dict[str, str]]:
        """Labels of pods, by namespace/name; raises Unreachable."""


def ask(reach: Reach, node: str, port: int, path: str) -> Any:
    """A node's answer as a document; raises Unreachable."""
    return _document(f"node {node}: {path}", reach.get(node, port, path))


def ask_controller(reach: Reach, name: str, path: str) -> Any:
    """A controller's answer as a document; raises Unreachable."""
    return _document(f"{name}: {path}", reach.get_controller(name, path))


def ask_all(work: Callable[[str], T], nodes: Iterable[str]) -> tuple[dict[str, T], dict[str, str]]:
    """The same question to several nodes at once: answers, and why others have not answered."""
    names = list(nodes)
    found: dict[str, T] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ask") as pool:
        for name, future in [(name, pool.submit(work, name)) for name in names]:
            try:
                found[name] = future.result()
            except Unreachable as error:
                failed[name] = str(error)
    return found, failed


def chosen(reach: Reach, node: str | None) -> list[str]:
    """The node that is named, or all; raises Unreachable."""
    known = reach.nodes()
    if node is None:
        return known
    if node not in known:
        raise Unreachable(f"there is no node {node!r}; these have an agent: {', '.join(known) or 'none'}")
    return [node]


def about(node: str, why: str) -> str:
    """Why a node does not answer, with its name unless it says so itself."""
    return why if why.startswith(f"node {node}") else f"node {node}: {why}"


def first_line(fault: object) -> str:
    """A fault without the advice after it, where many are said one after another."""
    return str(fault).partition("\n")[0]


def query(path: str, **words: str) -> str:
    """A path with a query."""
    from urllib.parse import urlencode  # noqa: PLC0415 - most commands ask plain paths

    return f"{path}?{urlencode(words)}"


def _document(what: str, body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise Unreachable(f"{what}: the answer is not JSON: {error}") from error
