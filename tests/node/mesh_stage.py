"""A running mesh for tests: two nodes, enrolled and other pods, and what may be asked of and done to it.

    node-a                                   node-b
    +------------------------------+         +------------------------------+
    | shop/client   (enrolled)     |         | shop/web      (enrolled)     |
    | shop/other    (enrolled)     |---------| legacy/server                |
    | legacy/outside               |         |                              |
    +------------------------------+         +------------------------------+

Both servers run apps/server.py; service `web` in `shop` and `server` in `legacy` have the same ports.
"""

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.node import lab_stage
from tests.support.machine import alone
from tests.support.waiting import eventually

APPS = Path(__file__).parent / "apps"
PORTS = (7001, 7002, 7003, 7004, 7005, 7006)


def _pod(namespace: str, name: str, node: str, *command: str, ready: int | None = None) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "app", "command": list(command)}
    if ready:
        container["readinessProbe"] = {"tcpSocket": {"port": ready}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": [container]},
    }


def _service(namespace: str, name: str) -> dict[str, Any]:
    ports = [{"name": f"p{port}", "port": port, "targetPort": port} for port in PORTS]
    ports.append({"name": "other", "port": 80, "targetPort": 7001})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": {"app": name}, "ports": ports},
    }


def topology() -> list[dict[str, Any]]:
    serve = ("python3", str(APPS / "server.py"))
    wait = ("sleep", "infinity")
    labels = {"shop": {"culvert.io/mesh": "enabled"}, "legacy": {}}
    return [
        *(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": own}}
            for name, own in labels.items()
        ),
        _pod("shop", "web", "node-b", *serve, ready=7001),
        _pod("shop", "client", "node-a", *wait),
        _pod("shop", "other", "node-a", *wait),
        _pod("legacy", "outside", "node-a", *wait),
        _pod("legacy", "server", "node-b", *serve, ready=7001),
        _service("shop", "web"),
        _service("legacy", "server"),
    ]


class Mesh:
    """One lab with the mesh in it."""

    def __init__(self, lab: str) -> None:
        self.lab = lab

    def command(self, *words: str, **options: Any) -> "subprocess.CompletedProcess[Any]":
        """`culvert WORDS --lab ...`, which must succeed."""
        group, verb, *rest = words
        done = lab_stage.culvert(group, verb, "--lab", self.lab, *rest, **options)
        assert done.returncode == 0, done.stderr
        return done

    def run(self, pod: str, *words: str, **options: Any) -> "subprocess.CompletedProcess[Any]":
        """A command inside a pod (or `node/NAME`), whatever its status."""
        return lab_stage.culvert("lab", "exec", "--lab", self.lab, pod, "--", *words, **options)

    def start(self, pod: str, *words: str) -> "subprocess.Popen[Any]":
        """The same, left running; standard output is a text pipe."""
        return lab_stage.start("lab", "exec", "--lab", self.lab, pod, "--", *words, stdout=subprocess.PIPE, text=True)

    def watch(self, pod: str, host: str, seconds: int) -> "subprocess.Popen[Any]":
        """Run apps/watch.py in a pod, towards port 7001."""
        return self.start(pod, "python3", str(APPS / "watch.py"), host, "7001", str(seconds))

    def client(self, pod: str, case: str, host: str, port: int, *arguments: str) -> dict[str, Any]:
        """Run a case of apps/client.py in a pod."""
        done = self.run(pod, "python3", str(APPS / "client.py"), case, host, str(port), *arguments)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    @contextmanager
    def staying(self, pod: str, host: str, port: int, seconds: float) -> Iterator[Callable[[], dict[str, Any]]]:
        """A connection that talks while the block runs; call what this yields for how it ended."""
        words = ("python3", str(APPS / "client.py"), "stay", host, str(port), str(seconds))
        process = self.start(pod, *words)
        assert process.stdout is not None
        assert "open" in process.stdout.readline()

        def ended() -> dict[str, Any]:
            out, _ = process.communicate(timeout=seconds + 10)
            found: dict[str, Any] = json.loads(out.splitlines()[-1])
            return found

        try:
            yield ended
        finally:
            process.terminate()
            process.wait(10)
            process.stdout.close()

    def apply(self, *objects: dict[str, Any]) -> None:
        self.command("lab", "apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def delete(self, kind: str, name: str) -> None:
        self.command("lab", "delete", kind, name)

    @contextmanager
    def applied(self, *objects: dict[str, Any]) -> Iterator[None]:
        """Objects that are there for a while."""
        self.apply(*objects)
        try:
            yield
        finally:
            for item in objects:
                metadata = item["metadata"]
                self.delete(item["kind"], f"{metadata['namespace']}/{metadata['name']}")

    def label(self, namespace: str, label: str) -> None:
        self.command("lab", "label", "namespace", namespace, label)

    def status(self) -> dict[str, Any]:
        return lab_stage.status(self.lab)

    def pod(self, name: str) -> dict[str, Any]:
        """A pod's entry of `lab status`."""
        return next(pod for pod in self.status()["pods"] if f"{pod['namespace']}/{pod['name']}" == name)

    def ips(self, name: str) -> list[str]:
        found: list[str] = self.pod(name)["ips"]
        return found

    def pid(self, node: str, component: str) -> int:
        """The process of a node's component now."""
        entry = next(item for item in self.status()["nodes"] if item["name"] == node)
        found: int = entry["components"][component]["pid"]
        return found

    def metrics(self, node: str, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels on a node's ztunnel."""
        text = self.run(f"node/{node}", "curl", "-s", "http://127.0.0.1:15020/metrics").stdout
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(label in series for label in wanted):
                total += float(value)
        return total

    def access_log(self, node: str) -> list[dict[str, str]]:
        """Every access log line of a node so far, its pairs by key."""
        text = self.command("lab", "logs", f"node/{node}/ztunnel").stdout
        return [_pairs(line) for line in text.splitlines() if "\taccess\t" in line]

    def logged(self, node: str, **wanted: str) -> dict[str, str]:
        """The last line with these pairs (dots written as __); waits for it up to five seconds."""
        keys = {key.replace("__", "."): value for key, value in wanted.items()}
        found = eventually(lambda: [line for line in self.access_log(node) if keys.items() <= line.items()])
        return found[-1]


def _pairs(line: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(line.rsplit("\t", maxsplit=1)[-1]))


@contextmanager
def link(mesh: Mesh, node: str, path: Path, what: str) -> Iterator[Callable[[], str]]:
    """Listens on a node's link to the others while the block runs; call what this yields for what came, as text."""
    tcpdump = mesh.start(
        f"node/{node}", "tcpdump", "-i", "eth0", "-nn", "--immediate-mode", "-U", "-w", str(path), what
    )

    def seen() -> str:
        tcpdump.terminate()
        tcpdump.communicate(timeout=10)
        return str(mesh.run(f"node/{node}", "tcpdump", "-nn", "-r", str(path)).stdout)

    try:
        eventually(path.exists)
        yield seen
    finally:
        if tcpdump.poll() is None:
            tcpdump.terminate()
            tcpdump.communicate(timeout=10)


@contextmanager
def mesh(purpose: str, folder: Path, *objects: dict[str, Any]) -> Iterator[Mesh]:
    """The topology above, and more objects, for as long as the block runs."""
    own = lab_stage.name(purpose)
    (folder / "topology.yaml").write_text(yaml.safe_dump_all([*topology(), *objects]))
    with alone():
        try:
            done = lab_stage.culvert("lab", "up", str(folder), "--lab", own, timeout=120)
            assert done.returncode == 0, done.stderr
            yield Mesh(own)
        finally:
            lab_stage.culvert("lab", "down", "--lab", own)
