"""Whether a cluster is one into which Culvert can be installed. Nothing is changed."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from bpf.features import Check
from cli.install.chart import Chart, Release
from cli.install.kinds import ACCESS_REVIEWS, DAEMON_SETS, Document, resource_of
from cli.install.record import is_ours, manager
from cli.table import some
from mesh.kube.api import Api, Selection
from mesh.kube.documents import labels_of
from mesh.kube.errors import ApiFault, Forbidden, NotFound
from mesh.kube.resources import CONFIG_MAPS, DEFINITIONS, NAMESPACES, NODES
from mesh.kube.transport import Call

OLDEST_KUBERNETES = (1, 27)  # as the chart says; policies' status and server-side apply of all of it
OLDEST_KERNEL = (6, 1)
GUARD_KERNEL = (6, 6)
# What a vendor's build of Kubernetes has in its version, and by what else a platform is known.
_MARKS = {"+k3s": "k3s", "-gke.": "gke", "-eks-": "eks"}
_OWN_PATHS = {"k3s", "gke", "openshift"}
_OPENSHIFT = "node.openshift.io/os_id"
_COMPUTE = "eks.amazonaws.com/compute-type"
_PSA = "pod-security.kubernetes.io/enforce"
# Agents of others that steer the same connections.
_OTHERS = {"ztunnel": "Istio's ztunnel", "istio-cni-node": "Istio's CNI agent", "linkerd-cni": "Linkerd's CNI plugin"}


async def checks(api: Api, namespace: str) -> list[Check]:
    """Everything; a fault of the API server is the last check."""
    found: list[Check] = []
    chart = Chart()
    for look in (_version, _nodes, _cilium, _others):
        try:
            found += await look(api)
        except ApiFault as fault:
            return [*found, Check("API server", False, str(fault))]
    objects = [*chart.definitions(), *chart.objects(chart.values(), Release(namespace))]
    for more in (_rights(api, objects), _definitions(api, chart.definitions()), _namespace(api, namespace)):
        try:
            found += await more
        except ApiFault as fault:
            found.append(Check("API server", False, str(fault)))
    return found


async def _version(api: Api) -> list[Check]:
    document = await api.request(Call("GET", "/version"), dict)
    text = str(document.get("gitVersion", "?"))
    version = numbers(f"{document.get('major')}.{document.get('minor')}")
    wanted = ".".join(map(str, OLDEST_KUBERNETES))
    return [
        Check("API server", True, f"answers at {api.transport.host}"),
        Check("Kubernetes", version >= OLDEST_KUBERNETES, f"version {text}; {wanted} or later is needed"),
    ]


async def _nodes(api: Api) -> list[Check]:
    version, nodes = await _server_and_nodes(api)
    linux = [node for node in nodes if _info(node).get("operatingSystem") == "linux"]
    found = [Check("nodes", bool(linux), f"{len(linux)} with Linux" + _beside(len(nodes) - len(linux), "without"))]
    old = [_kernel(node) for node in linux if numbers(_info(node).get("kernelVersion", "")) < OLDEST_KERNEL]
    wanted = ".".join(map(str, OLDEST_KERNEL))
    sentence = f"all have {wanted} or later" if not old else f"older than {wanted}: {some(old)}"
    found.append(Check("kernels", not old, sentence))
    weak = [_kernel(node) for node in linux if numbers(_info(node).get("kernelVersion", "")) < GUARD_KERNEL]
    sentence = "all can have the guard" if not weak else f"probably without the guard (Linux 6.6): {some(weak)}"
    found.append(Check("guard", not weak, sentence, is_required=False))
    return [*found, *_platform(version, nodes)]


async def _server_and_nodes(api: Api) -> tuple[str, list[Document]]:
    """What tells the platform: the API server's version, and all nodes."""
    nodes = [item async for page in api.pages(Selection(NODES)) for item in page]
    return str((await api.request(Call("GET", "/version"), dict)).get("gitVersion", "")), nodes


def _platform(version: str, nodes: Sequence[Document]) -> list[Check]:
    """What `--platform` should say, and nodes on which nothing of ours can run."""
    name = platform_of(version, nodes)
    found = [Check("platform", True, f"--platform {name}" if name != "generic" else "nothing special: generic")]
    if autopilot := [node["metadata"]["name"] for node in nodes if node["metadata"]["name"].startswith("gk3-")]:
        sentence = f"GKE Autopilot admits no DaemonSet that uses the node's network: {some(autopilot)}"
        found.append(Check("Autopilot", False, sentence))
    if fargate := [one["metadata"]["name"] for one in nodes if labels_of(one).get(_COMPUTE) == "fargate"]:
        sentence = f"Fargate runs no DaemonSet, pods there stay outside: {some(fargate)}"
        found.append(Check("Fargate", False, sentence, is_required=False))
    return found


def platform_of(version: str, nodes: Iterable[Document]) -> str:
    """The platform by an API server's version and its nodes, as the chart's setting calls it."""
    for mark, name in _MARKS.items():
        if mark in version:
            return name
    for node in nodes:
        provider = str((node.get("spec") or {}).get("providerID", "")).partition(":")[0]
        if _OPENSHIFT in labels_of(node):
            return "openshift"
        if provider == "kind":
            return "kind"
    return "generic"


async def platform_warning(api: Api, chosen: str) -> str:
    """What is odd about a platform that was chosen, for somebody who installs; empty: nothing, or it is not known."""
    try:
        name = platform_of(*await _server_and_nodes(api))
    except ApiFault:
        return ""
    if name == chosen or not {name, chosen} & _OWN_PATHS:
        return ""
    return f"this looks like {name}, and the platform is {chosen}: nodes may keep CNI elsewhere (--platform {name})"


async def _cilium(api: Api) -> list[Check]:
    """Cilium takes what others put into its CNI configuration out again, unless it is told to leave it."""
    try:
        data = (await api.get(CONFIG_MAPS, "cilium-config", "kube-system")).get("data") or {}
    except (NotFound, Forbidden):
        return []
    is_alone = data.get("cni-exclusive", "true") == "true"
    sentence = "takes our CNI entry out again: set cni.exclusive=false there" if is_alone else "leaves our CNI entry"
    return [Check("Cilium", not is_alone, sentence, is_required=False)]


async def _others(api: Api) -> list[Check]:
    sets = [item async for page in api.pages(Selection(DAEMON_SETS, metadata_only=True)) for item in page]
    found = [
        f"{_OTHERS[one['metadata']['name']]} in {one['metadata']['namespace']}"
        for one in sets
        if one["metadata"]["name"] in _OTHERS
    ]
    sentence = f"{some(found)}: a pod must be in one mesh only" if found else "none is here"
    return [Check("other meshes", not found, sentence, is_required=False)]


async def _rights(api: Api, objects: Iterable[Document]) -> list[Check]:
    """Whether we may do what `install` does."""
    missing = []
    asked = {(str(resource_of(one)), one["metadata"].get("namespace", "")): resource_of(one) for one in objects}
    for (name, namespace), resource in asked.items():
        for verb in ("create", "patch"):
            review = {
                "spec": {
                    "resourceAttributes": {
                        "group": resource.group,
                        "version": resource.version,
                        "resource": resource.plural,
                        "verb": verb,
                        **({"namespace": namespace} if namespace else {}),
                    }
                }
            }
            answer = await api.create(ACCESS_REVIEWS, review)
            if not (answer.get("status") or {}).get("allowed"):
                missing.append(f"{verb} {name}{' in ' + namespace if namespace else ''}")
    return [Check("rights", not missing, f"may not {some(missing)}" if missing else "may create all objects")]


async def _definitions(api: Api, definitions: Sequence[Document]) -> list[Check]:
    found = []
    for definition in definitions:
        name = definition["metadata"]["name"]
        try:
            there = await api.get(DEFINITIONS, name)
        except NotFound:
            found.append(Check(name, True, "is not there; it will be installed"))
            continue
        served = [one["name"] for one in there["spec"]["versions"] if one.get("served")]
        whose = "ours" if is_ours(there) else f"of {manager(there) or 'somebody else'}, and stays as it is"
        found.append(Check(name, "v1" in served, f"is there ({whose}), serves {', '.join(served)}; v1 is needed"))
    return found


async def _namespace(api: Api, namespace: str) -> list[Check]:
    try:
        found = await api.get(NAMESPACES, namespace)
    except NotFound:
        return [Check("namespace", True, f"{namespace} is not there; it will be made")]
    except Forbidden as fault:
        return [Check("namespace", False, str(fault))]
    level = labels_of(found).get(_PSA, "privileged")
    sentence = f"{namespace} is there" + ("" if level == "privileged" else f" and admits only {level} pods ({_PSA})")
    # `install` labels the namespace itself.
    return [Check("namespace", True, sentence)]


def numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a version; what is none counts as older than everything."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else ()


def _beside(count: int, word: str) -> str:
    return f", {count} {word}" if count else ""


def _info(node: Document) -> dict[str, Any]:
    found: dict[str, Any] = (node.get("status") or {}).get("nodeInfo") or {}
    return found


def _kernel(node: Document) -> str:
    return f"{node['metadata']['name']} ({_info(node).get('kernelVersion', 'unknown')})"
