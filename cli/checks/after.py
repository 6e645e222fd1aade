"""Whether an installation works: objects, processes, nodes, pods. Nothing is changed."""

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from bpf.features import Check
from cli.install import record, waiting
from cli.install.chart import Chart
from cli.presence import honours_istio_labels
from cli.reach.base import AGENT, Unreachable, ask, ask_all, first_line
from cli.reach.cluster import ClusterReach
from cli.table import some
from mesh.enrolment import CAPTURE_ANNOTATION, CAPTURED, asked_by
from mesh.kube.api import Api, Selection
from mesh.kube.documents import annotations_of, labels_of
from mesh.kube.errors import ApiFault, NotFound
from mesh.kube.resources import AUTHORIZATION_POLICIES, LEASES, NAMESPACES, PEER_AUTHENTICATIONS, PODS

Look = Callable[[Api, str], Coroutine[Any, Any, list[Check]]]


def checks(reach: ClusterReach, namespace: str) -> list[Check]:
    """Everything that the API server knows, then what each node says of itself."""
    return reach.ask(lambda api: _by_api(api, namespace)) + _by_nodes(reach)


async def _by_api(api: Api, namespace: str) -> list[Check]:
    found: list[Check] = []
    looks: tuple[Look, ...] = (_version, _processes, _leader, _policies, _pods)
    for look in looks:
        try:
            found += await look(api, namespace)
        except ApiFault as fault:
            found.append(Check(look.__name__.strip("_"), False, str(fault)))
    return found


async def _version(api: Api, namespace: str) -> list[Check]:
    kept = await record.read(api, namespace)
    if kept is None:
        return [Check("version", True, f"not of `culvert install` (namespace {namespace})", is_required=False)]
    own = Chart().version
    sentence = f"{kept.version} is installed" + ("" if kept.version == own else f"; this command is of {own}")
    return [Check("version", kept.version == own, sentence, is_required=False)]


async def _processes(api: Api, namespace: str) -> list[Check]:
    found = []
    for name, look in (("controller", waiting.deployment_missing), ("node", waiting.daemon_set_missing)):
        try:
            missing = await look(api, namespace, f"culvert-{name}")
        except NotFound:
            missing = [f"culvert-{name} is not in namespace {namespace}: `culvert install`"]
        found.append(Check(name, not missing, "; ".join(missing) or "ready"))
    return found


async def _leader(api: Api, namespace: str) -> list[Check]:
    try:
        lease = await api.get(LEASES, "culvert-controller", namespace)
    except NotFound:
        return [Check("leader", False, "no controller has ever been elected")]
    holder = (lease.get("spec") or {}).get("holderIdentity")
    return [Check("leader", bool(holder), f"{holder} writes" if holder else "nobody holds the Lease")]


async def _policies(api: Api, _: str) -> list[Check]:
    refused = []
    for policies in (AUTHORIZATION_POLICIES, PEER_AUTHENTICATIONS):
        try:
            items = [item async for page in api.pages(Selection(policies)) for item in page]
        except NotFound:
            return [Check("policies", False, f"the cluster has no {policies}: `culvert install` brings it")]
        refused += [f"{one['metadata']['namespace']}/{one['metadata']['name']}" for one in items if _is_refused(one)]
    sentence = f"not accepted, `kubectl describe` says why: {some(refused)}" if refused else "all are accepted"
    return [Check("policies", not refused, sentence, is_required=False)]


def _is_refused(policy: dict[str, Any]) -> bool:
    return any(one["type"] == "Accepted" and one["status"] == "False" for one in waiting.conditions_of(policy))


async def _pods(api: Api, _: str) -> list[Check]:
    istio_labels = bool(await honours_istio_labels(api))
    spaces = [item async for page in api.pages(Selection(NAMESPACES, metadata_only=True)) for item in page]
    labels = {one["metadata"]["name"]: labels_of(one) for one in spaces}
    waits, captured = [], 0
    async for page in api.pages(Selection(PODS, field_selector="status.phase=Running")):
        for pod in page:
            metadata = pod["metadata"]
            asked = asked_by(labels_of(pod), labels.get(metadata["namespace"], {}), istio_labels=istio_labels)
            if not asked.enrol or pod["spec"].get("hostNetwork") or metadata.get("deletionTimestamp"):
                continue
            if annotations_of(pod).get(CAPTURE_ANNOTATION) == CAPTURED:
                captured += 1
            else:
                waits.append(f"{metadata['namespace']}/{metadata['name']}")
    sentence = f"asked for and not captured: {some(waits)}" if waits else f"{captured} are in the mesh"
    return [Check("pods", not waits, sentence)]


def _by_nodes(reach: ClusterReach) -> list[Check]:
    try:
        nodes = reach.nodes()
    except Unreachable as error:
        return [Check("agents", False, first_line(error))]
    if not nodes:
        return [Check("agents", False, "none runs")]
    found, failed = ask_all(lambda node: ask(reach, node, AGENT, "/status"), nodes)
    problems = [f"{node}: {first_line(why)}" for node, why in failed.items()]
    guards: Counter[str] = Counter()
    for node, status in found.items():
        problems += [f"{node}: {problem}" for problem in problems_of(status)]
        if not status["guard"]["on"]:
            guards[str(status["guard"]["problem"])] += 1
    without = some([f"{why} ({count} nodes)" for why, count in guards.items()])
    return [
        Check("agents", not problems, some(problems) if problems else f"all {len(found)} have nothing to complain of"),
        Check("guard", not guards, f"not everywhere: {without}" if guards else "on everywhere", is_required=False),
    ]


def problems_of(status: dict[str, Any]) -> list[str]:
    """What an agent's status says against its node."""
    found = [status["waiting_for"], status["programs"]["problem"]]
    found += [status[part].get("problem", "") for part in ("ztunnel", "controller")]
    found += list((status.get("kubernetes") or {}).values())
    found += [f"{pod['namespace']}/{pod['name']}: {pod['reason']}" for pod in status["pods"] if _is_bad(pod)]
    return [one for one in found if one]


def _is_bad(pod: dict[str, Any]) -> bool:
    """Not a pod on the node's network: an enrolled namespace may have some, and they are shown as what they are."""
    return pod["state"] in ("refused", "failed") and pod.get("refused") != "host_network"
