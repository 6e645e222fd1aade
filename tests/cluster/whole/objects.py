"""The objects of the tests: the demo's own, with images in them, and a few more."""

from collections.abc import Sequence
from typing import Any

import yaml

from cli.demo.stage import MANIFESTS
from tests.cluster.kube.place import Place
from tests.cluster.whole import programs
from tests.cluster.whole.stage import SHOP

Manifest = dict[str, Any]

OURS = "localhost/culvert:dev"  # it has a Python
# Where our image has the demo's applications.
APPS = "/opt/culvert/lib/python3.11/site-packages/cli/demo/apps"
SLEEP = ("sleep", "infinity")


def node_name(place: Place, name: str) -> str:
    """The demo's `node-1` as this cluster calls it."""
    return place.nodes[int(name.removeprefix("node-")) - 1].name


def container(name: str, command: Sequence[str], image: str = OURS, **more: Any) -> Manifest:
    """A container."""
    return {"name": name, "image": image, "imagePullPolicy": "Never", "command": list(command), **more}


def pod(name: str, node: str, *containers: Manifest, **spec: Any) -> Manifest:
    """A pod of namespace shop."""
    own = {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": list(containers)}
    metadata = {"name": name, "namespace": SHOP, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**own, **spec}}


def service(name: str, port: int) -> Manifest:
    """A service of namespace shop that is reached on port 80."""
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP}, "spec": spec}


def policy(kind: str, name: str, **spec: Any) -> Manifest:
    """A policy of namespace shop."""
    metadata = {"name": name, "namespace": SHOP}
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def demo(place: Place) -> list[Manifest]:
    """Everything that `culvert demo` applies."""
    documents: list[Manifest] = []
    for path in sorted(MANIFESTS.glob("*.yaml")):
        text = path.read_text().replace("@APPS@", APPS)
        # Kubelet's probes are to be seen.
        documents += yaml.safe_load_all(text.replace("access_log off;", "access_log /dev/stdout;"))
    for one in documents:
        if one["kind"] == "Pod":
            _fit(place, one)
    spaces = [one for one in documents if one["kind"] == "Namespace"]
    return [*spaces, *_accounts(documents), *(one for one in documents if one["kind"] != "Namespace")]


def _fit(place: Place, found: Manifest) -> None:
    """A lab runs what the machine has; here every command needs an image."""
    spec = found["spec"]
    spec |= {"nodeName": node_name(place, spec["nodeName"]), "terminationGracePeriodSeconds": 1}
    fitted: list[Manifest] = []
    for one in spec["containers"]:
        if "command" not in one:
            fitted += [container("python", SLEEP), container("programs", SLEEP, programs.IMAGE)]
            continue
        image = OURS if one["command"][0] == "python3" else programs.IMAGE
        fitted.append({**one, "image": image, "imagePullPolicy": "Never"})
        if "readinessProbe" in one:
            one["readinessProbe"]["timeoutSeconds"] = 5  # the default of one second is short on a busy machine
    spec["containers"] = fitted


def _accounts(documents: list[Manifest]) -> list[Manifest]:
    """Service accounts, which a cluster wants before the pods; each namespace's `default` it would make in a moment."""
    names = {(one["metadata"]["name"], "default") for one in documents if one["kind"] == "Namespace"}
    for one in documents:
        if one["kind"] == "Pod":
            names.add((one["metadata"]["namespace"], one["spec"].get("serviceAccountName", "default")))
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        for namespace, name in sorted(names)
    ]


SERVER = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["VERSION"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def deployment(name: str, version: str) -> Manifest:
    """Two replicas that say their version, replaced without a gap as people do it: ready before the old one goes, and
    that one asleep until everybody has heard of it."""
    labels = {"app": name}
    one = container(
        "app",
        ["python3", "-c", SERVER],
        env=[{"name": "VERSION", "value": version}],
        readinessProbe={"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 5},
        lifecycle={"preStop": {"sleep": {"seconds": 5}}},
    )
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    spread["labelSelector"] = {"matchLabels": labels}
    template = {"terminationGracePeriodSeconds": 10, "containers": [one], "topologySpreadConstraints": [spread]}
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": {"labels": labels}, "spec": template},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": SHOP}, "spec": spec}
