"""Waiting for what was installed, with a bound, saying what for and what is in its way."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from cli.install.kinds import CORE_EVENTS, DAEMON_SETS, DEPLOYMENTS, Document
from mesh.kube.api import Api, Selection
from mesh.kube.errors import ApiFault, Forbidden, Invalid, NotFound, Unauthorized
from mesh.kube.resources import DEFINITIONS, PODS

Say = Callable[[str], None]
Look = Callable[[], Awaitable[Sequence[str]]]

INTERVAL_S = 1.0
# Probes fail while a process starts; later that is worth a line.
SETTLING_S = 45.0
# A cluster that is being changed answers late now and then.
_LASTING = (Forbidden, Unauthorized, Invalid)


class TimedOut(Exception):
    """What was waited for did not come; each line of the message says what is missing."""


async def until(what: str, look: Look, timeout_s: float, say: Say, interval_s: float = INTERVAL_S) -> None:
    """Look again and again until nothing is missing; says each change. Raises TimedOut, and faults that will last."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    shown: Sequence[str] = ()
    while True:
        try:
            missing = await look()
        except _LASTING:
            raise
        except ApiFault as fault:
            missing = [str(fault)]
        if not missing:
            return
        if loop.time() >= deadline:
            raise TimedOut("\n".join([f"{what}: not within {timeout_s:g} s", *(f"  {line}" for line in missing)]))
        if missing != shown:
            say(f"waiting for {what}: {'; '.join(missing)}")
            shown = missing
        await asyncio.sleep(interval_s)


async def definition_missing(api: Api, name: str) -> list[str]:
    """Why a kind cannot be used yet."""
    found = await api.get(DEFINITIONS, name)
    conditions = {one["type"]: one for one in conditions_of(found)}
    if conditions.get("Established", {}).get("status") == "True":
        return []
    names = conditions.get("NamesAccepted", {})
    return [names["message"] if names.get("status") == "False" else f"{name} is not established"]


async def deployment_missing(api: Api, namespace: str, name: str) -> list[str]:
    """Why a Deployment is not as it was asked for."""
    found = await api.get(DEPLOYMENTS, name, namespace)
    wanted, status = found["spec"].get("replicas", 1), found.get("status", {})
    ready = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0))
    if is_observed(found) and ready >= wanted and status.get("replicas", 0) == wanted:
        return []
    return [f"{ready} of {wanted} ready", *await pods_in_trouble(api, namespace, name)]


async def daemon_set_missing(api: Api, namespace: str, name: str) -> list[str]:
    """Why a DaemonSet does not run on every node as it was asked for."""
    found = await api.get(DAEMON_SETS, name, namespace)
    status = found.get("status", {})
    wanted = status.get("desiredNumberScheduled", 0)
    ready = min(status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0))
    if is_observed(found) and wanted and ready >= wanted:
        return []
    if is_observed(found) and not wanted:
        return ["there is no node that it may run on"]
    return [f"{ready} of {wanted} nodes ready", *await pods_in_trouble(api, namespace, name)]


async def pods_in_trouble(api: Api, namespace: str, name: str) -> list[str]:
    """What keeps pods from being ready, one line per pod; those that just take their time are left out."""
    pods = await api.page(Selection(PODS, namespace, label_selector=f"app.kubernetes.io/name={name}"))
    found = []
    for pod in pods.items:
        if pod["metadata"].get("deletionTimestamp") or is_ready(pod):
            continue
        reason = trouble(pod) or await _last_warning(api, pod)
        if reason:
            where = pod["spec"].get("nodeName")
            found.append(f"pod {pod['metadata']['name']}{f' on {where}' if where else ''}: {reason}")
    return found


def trouble(pod: Document) -> str:
    """What a pod's status says against it; empty: nothing."""
    status: dict[str, Any] = pod.get("status") or {}
    for condition in conditions_of(pod):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason"))
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container.get("state", {}).get("waiting", {})
        ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if ended and ended.get("exitCode") and not container.get("ready"):
            words = ended.get("message") or ended.get("reason") or ""
            return f"container {container['name']} ended with {ended['exitCode']} {words}".strip()
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"container {container['name']}: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def conditions_of(found: Document) -> Sequence[Document]:
    """An object's conditions; a new one has none, or null."""
    return (found.get("status") or {}).get("conditions") or ()


async def _last_warning(api: Api, pod: Document) -> str:
    """The last thing that went wrong with a pod that does not start: a missing volume, a plugin that refuses."""
    metadata = pod["metadata"]
    selector = f"involvedObject.uid={metadata['uid']},type=Warning"
    try:
        events = await api.page(Selection(CORE_EVENTS, metadata["namespace"], field_selector=selector))
    except (NotFound, Forbidden):
        return ""
    told = [one for one in events.items if one.get("reason") != "Unhealthy" or _age_s(pod) > SETTLING_S]
    latest = sorted(told, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return " ".join(str(latest[-1].get("message", "")).split()) if latest else ""


def _age_s(pod: Document) -> float:
    made = pod["metadata"].get("creationTimestamp")
    return (datetime.now(UTC) - datetime.fromisoformat(made)).total_seconds() if made else 0.0


def is_ready(pod: Document) -> bool:
    """Whether a pod says that it is."""
    conditions = conditions_of(pod)
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def is_observed(found: Document) -> bool:
    """Whether an object's status is about the object as it is now."""
    return bool(found.get("status", {}).get("observedGeneration", 0) >= found["metadata"].get("generation", 0))
