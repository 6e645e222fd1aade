"""What does a pod cost the controller in memory, and how long does a start in a large cluster take?

Path measured: the controller as a process with the source `kubernetes`, against a server of this file that has N pods
(ten per service, with what a kubelet writes into them), N/10 services, slices and accounts, N/100 policies, 100 nodes.
It answers lists in pages and lets watches hang; what it costs itself is not counted.

Number that would change a decision: above 60 KB per pod for the whole process at 10,000 pods.

    python -m bench.micro.controller_memory --pods 10000 --json bench/results/controller_memory.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bench import machine

SETTLE_S = 3.0
NODES = 100
PODS_PER_SERVICE = 10

Document = dict[str, Any]


def _metadata(name: str, namespace: str = "", **more: Any) -> Document:
    managed = [{"manager": "kubelet", "fieldsV1": {f"f:field-{number}": {} for number in range(40)}}]
    found = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "managedFields": managed, **more}
    return {**found, "namespace": namespace} if namespace else found


def _address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def _pod(number: int) -> Document:
    service = number // PODS_PER_SERVICE
    app, namespace = f"app-{service}", _namespace(service)
    keys = ("app", "app.kubernetes.io/name", "app.kubernetes.io/instance")
    labels = {**dict.fromkeys(keys, app), "pod-template-hash": f"{service:08x}", "version": "v1"}
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{app}-{service:08x}", "controller": True}
    container = {
        "name": "app",
        "image": "registry.example.com/team/app:1.2.3",
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
        "env": [{"name": f"VARIABLE_{place}", "value": "v" * 20} for place in range(15)],
    }
    return {
        "metadata": _metadata(
            f"{app}-{service:08x}-{number:05x}",
            namespace,
            generateName=f"{app}-{service:08x}-",
            labels=labels,
            annotations={"culvert.io/capture": "enabled", "checksum/config": "a" * 64},
            ownerReferences=[owner],
        ),
        "spec": {"nodeName": f"node-{number % NODES}", "serviceAccountName": app, "containers": [container]},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": _address(number)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _namespace(service: int) -> str:
    return f"namespace-{service // 20}"


def _service(number: int) -> Document:
    spec = {
        "clusterIPs": [f"10.200.{number >> 8}.{number & 255}"],
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        "selector": {"app": f"app-{number}"},
    }
    return {"metadata": _metadata(f"app-{number}", _namespace(number)), "spec": spec}


def _slice(number: int) -> Document:
    pods = range(number * PODS_PER_SERVICE, (number + 1) * PODS_PER_SERVICE)
    labels = {"kubernetes.io/service-name": f"app-{number}"}
    endpoints = [
        {"addresses": [_address(one)], "targetRef": {"kind": "Pod", "name": _pod(one)["metadata"]["name"]}}
        for one in pods
    ]
    ports = [{"name": "http", "port": 8080}]
    metadata = _metadata(f"app-{number}-x", _namespace(number), labels=labels)
    return {"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}


def _policy(number: int) -> Document:
    namespace = _namespace(number)
    source = {"principals": [f"cluster.local/ns/{namespace}/sa/app-{number + 1}"]}
    spec = {"selector": {"matchLabels": {"app": f"app-{number}"}}, "rules": [{"from": [{"source": source}]}]}
    return {"metadata": _metadata(f"policy-{number}", namespace, generation=1), "spec": spec}


def _node(number: int) -> Document:
    return {"metadata": _metadata(f"node-{number}", labels={"topology.kubernetes.io/zone": f"z{number % 3}"})}


def make_world(pods: int) -> dict[str, list[Document]]:
    """The collections, by the last word of their path."""
    services = range(pods // PODS_PER_SERVICE)
    return {
        "pods": [_pod(number) for number in range(pods)],
        "services": [_service(number) for number in services],
        "endpointslices": [_slice(number) for number in services],
        "serviceaccounts": [{"metadata": _metadata(f"app-{number}", _namespace(number))} for number in services],
        "namespaces": [{"metadata": _metadata(f"namespace-{number}")} for number in range(len(services) // 20 + 1)],
        "nodes": [_node(number) for number in range(NODES)],
        "customresourcedefinitions": [{"metadata": _metadata("authorizationpolicies.security.istio.io")}],
        "authorizationpolicies": [_policy(number) for number in services[::10]],
    }


class _Handler(BaseHTTPRequestHandler):
    """Lists in pages; a watch hangs; a definition serves v1; a status is taken and forgotten."""

    protocol_version = "HTTP/1.1"
    world: dict[str, list[Document]]

    def do_GET(self) -> None:
        """Answer a list, a watch or a definition."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        last = url.path.rpartition("/")[2]
        if "watch" in query:
            threading.Event().wait()
        if "." in last:
            self._send({"spec": {"versions": [{"name": "v1", "served": True}]}})
            return
        items, start = self.world.get(last, []), int(query.get("continue", 0))
        end = start + int(query.get("limit", len(items)))
        metadata = {"resourceVersion": "1000", **({"continue": str(end)} if end < len(items) else {})}
        self._send({"metadata": metadata, "items": items[start:end]})

    def do_PATCH(self) -> None:
        """Take a status."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send({})

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def _send(self, document: Document) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _kubeconfig(port: int) -> str:
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    return json.dumps({"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"})


def _wait_until_serving(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stderr is not None
    for line in process.stderr:
        yield line
        if "serving " in line:
            return


def measure(pods: int) -> dict[str, float]:
    """One start of a controller; bytes are those of the process after it has settled."""
    _Handler.world = make_world(pods)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "kubeconfig").write_text(_kubeconfig(server.server_address[1]))
        argv = [sys.executable, "-m", "controller", "serve", f"--state={folder / 'state'}", "--source=kubernetes"]
        argv += [f"--kubeconfig={folder / 'kubeconfig'}", "--metrics-listen=127.0.0.1:0", "--debug-listen=127.0.0.1:0"]
        started = time.monotonic()
        with subprocess.Popen([*argv, "--listen=127.0.0.1:0"], stderr=subprocess.PIPE, text=True) as process:
            said = list(_wait_until_serving(process))
            ready_s = time.monotonic() - started
            assert process.poll() is None, "".join(said)
            time.sleep(SETTLE_S)
            status = Path(f"/proc/{process.pid}/status").read_text()
            ticks = sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            process.terminate()
    server.shutdown()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")}
    return {
        "pods": pods,
        "ready_s": round(ready_s, 2),
        "processor_s": ticks / os.sysconf("SC_CLK_TCK"),
        "resident_kb": sizes["VmRSS"],
        "peak_kb": sizes["VmHWM"],
    }


def main() -> None:
    """Measure an empty cluster and a full one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    empty, full = measure(0), measure(options.pods)
    growth = (full["resident_kb"] - empty["resident_kb"]) / options.pods
    whole = full["peak_kb"] / options.pods
    result = {"empty": empty, "full": full, "kb_per_pod_growth": round(growth, 2), "kb_per_pod_whole": round(whole, 2)}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps({**machine.facts(), **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
