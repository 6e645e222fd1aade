"""A mesh on this machine: the nodes of a lab, or the one node that this machine is."""

import difflib
import http.client
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from cli.reach.base import CONTROLLER, PROCESSES, Unreachable
from cli.table import some
from daemonset.runtime import InvalidDocument, parse_pod
from lab import client, namespaces, paths
from lab.choice import LabError, choose
from mesh.kube.documents import labels_of
from mesh.netns import inside

TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 256 << 20
NEAR = 5  # names to choose from, when one is wrong
HERE = Path("/proc/self/ns/net")


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        with connection.getresponse() as answer:
            body = answer.read(MAX_ANSWER_BYTES)
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise Unreachable(body.decode("utf-8", "replace").strip() or f"HTTP status {answer.status}")
    return body


class Silent(Unreachable):
    """Nobody is there; somebody who is may refuse to answer."""


def get_in(netns: Path, what: str, port: int, path: str) -> bytes:
    """What listens on loopback of a namespace; raises Unreachable."""
    try:
        return inside(netns, partial(_get, port, path))
    except (OSError, http.client.HTTPException) as error:
        raise Silent(f"{what} does not answer on port {port}: {error or type(error).__name__}") from error


class LabReach:
    """A lab of this machine. Nodes that are on other machines are not asked."""

    controllers_may_be_elsewhere = False

    def __init__(self, lab: str | None) -> None:
        """Raises Unreachable."""
        try:
            self.lab = choose(lab)
            self.status: dict[str, Any] = client.order(self.lab, "status")
        except LabError as error:
            raise Unreachable(str(error)) from error
        self._nodes = {node["name"]: Path(node["netns"]) for node in self.status["nodes"] if node["netns"]}

    def emptiness(self) -> str:
        """Its nodes are elsewhere."""
        return f"lab {self.lab} has no node on this machine: ask on the machine that runs one"

    def nodes(self) -> list[str]:
        """Nodes that are on this machine."""
        return sorted(self._nodes)

    def get(self, node: str, port: int, path: str) -> bytes:
        """Ask in the node's namespace."""
        return get_in(self._nodes[node], f"node {node}: its {PROCESSES[port]}", port, path)

    def controllers(self) -> list[str]:
        """The one."""
        return ["controller"]

    def get_controller(self, name: str, path: str) -> bytes:
        """Ask where the controller of a lab runs."""
        known = (paths.read_json(paths.LabPaths(self.lab).record) or {}).get("names", {})
        if "fabric" not in known:
            raise Unreachable(f"the controller of lab {self.lab} runs on another machine")
        return get_in(namespaces.path_of(known["fabric"]), "the controller", CONTROLLER, path)

    def place_of(self, source: str) -> tuple[str, str]:
        """By the lab's list of pods."""
        name = source if "/" in source else f"default/{source}"
        nodes = {f"{pod['namespace']}/{pod['name']}": str(pod["node"]) for pod in self.status["pods"]}
        if name in nodes:
            return nodes[name], name
        if near := difflib.get_close_matches(name, nodes, NEAR):
            raise Unreachable(f"lab {self.lab} has no pod {name!r}; near are {', '.join(near)}")
        raise Unreachable(f"lab {self.lab} has no pod {name!r}; it has {some(list(nodes), NEAR) or 'none'}")

    def pod_labels(self) -> dict[str, dict[str, str]]:
        """By the objects of the lab."""
        found = {}
        for pod in self.status["pods"]:
            path = f"{pod['namespace']}/{pod['name']}"
            try:
                written = client.order(self.lab, "get", kind="pod", path=path)["object"]
            except LabError as error:
                raise Unreachable(str(error)) from error
            found[path] = labels_of(written)
        return found


class NodeReach:
    """One node: the machine that we are on."""

    controllers_may_be_elsewhere = True

    def __init__(self, key: str | None) -> None:
        """Raises Unreachable."""
        found = sorted(path.parent.name for path in paths.RUN.glob("*/agent-status.json"))
        these = f"these have an agent here: {', '.join(found) or 'none'}"
        if key is None and len(found) != 1:
            raise Unreachable(f"which node? {these} (--local KEY)")
        if key is not None and key not in found:
            raise Unreachable(f"there is no node {key!r}; {these}")
        self._key = key or found[0]
        self._lab = next((lab for lab in paths.labs() if self._key.startswith(f"{lab}-")), "")

    def emptiness(self) -> str:
        """Never asked: there is one."""
        return "this machine has no node"

    def nodes(self) -> list[str]:
        """The one."""
        return [self._key]

    def get(self, node: str, port: int, path: str) -> bytes:
        """Ask on this machine's own loopback."""
        return self._asked(f"node {node}: its {PROCESSES[port]}", port, path)

    def controllers(self) -> list[str]:
        """The one, when it runs on this machine too."""
        try:
            inside(HERE, lambda: socket.create_connection(("127.0.0.1", CONTROLLER), TIMEOUT_S).close())
        except OSError:
            return []
        return ["controller"]

    def get_controller(self, name: str, path: str) -> bytes:
        """A controller that runs on this machine too."""
        return self._asked("the controller", CONTROLLER, path)

    def _asked(self, what: str, port: int, path: str) -> bytes:
        try:
            return get_in(HERE, what, port, path)
        except Silent as error:
            if not self._lab:
                raise
            raise Unreachable(f"{error}; {self._key} is a node of lab {self._lab}: say --lab {self._lab}") from error

    def place_of(self, source: str) -> tuple[str, str]:
        """Whatever it is called, this node is asked about it."""
        return self._key, source if "/" in source else f"default/{source}"

    def pod_labels(self) -> dict[str, dict[str, str]]:
        """By what the node's agent is told of its pods; raises Unreachable where that comes from an API server."""
        folder = paths.node_runtime(self._key) / "pods"
        if not folder.is_dir():
            raise Unreachable(f"node {self._key} has its pods from a cluster, which knows their labels: --kubeconfig")
        found = {}
        for path in sorted(folder.glob("*.json")):
            with suppress(InvalidDocument):  # the agent complains of it
                pod = parse_pod(paths.read_json(path))
                found[pod.full_name] = dict(pod.labels)
        return found
