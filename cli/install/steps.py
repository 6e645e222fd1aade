"""Putting an installation into a cluster, or changing the one that is there. Every step may be repeated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from cli.install import record, waiting
from cli.install.cleaning import Cleaning
from cli.install.kinds import Document, name_of, resource_of
from cli.install.record import Record
from cli.install.waiting import Say
from mesh.kube.api import Api
from mesh.kube.errors import ApiFault, NotFound
from mesh.kube.resources import DEFINITIONS

DEFINITION_TIMEOUT_S = 30.0
CLEANING_TIMEOUT_S = 60.0


class InstallRefused(Exception):
    """The cluster is not one into which this may be installed as things are; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An installation as it shall be."""

    namespace: str
    record: Record
    definitions: Sequence[Document]
    objects: Sequence[Document]


@dataclass(slots=True)
class Done:
    """What was done."""

    applied: list[str]
    removed: list[str]
    left: list[str]  # definitions of somebody else's, which serve as well


async def bring(api: Api, wanted: Wanted, earlier: Record | None, say: Say) -> Done:
    """Make the cluster's objects those that are wanted; raises InstallRefused, ApiFault, TimedOut."""
    await check_owner(api, wanted)
    await _end_cleaning(api, wanted.namespace, say)
    done = Done([], [], [])
    for definition in wanted.definitions:
        await _bring_definition(api, definition, done, say)
    say(f"{len(wanted.objects)} objects in namespace {wanted.namespace}")
    for document in wanted.objects:
        await _apply(api, document)
        done.applied.append(name_of(document))
        if document["kind"] == "Namespace":  # the record comes first: what breaks off can be taken out again
            await _apply(api, wanted.record.document(wanted.namespace))
    await _apply(api, wanted.record.document(wanted.namespace))
    for ref in earlier.objects if earlier else ():
        if ref not in wanted.record.objects and await record.removed(api, ref):
            done.removed.append(str(ref))
    return done


async def _end_cleaning(api: Api, namespace: str, say: Say) -> None:
    """What an uninstallation that could not be finished has left would take out again what is put in now."""
    cleaning = Cleaning(api, namespace, say, CLEANING_TIMEOUT_S)
    if not await cleaning.is_under_way():
        return
    say("ends the uninstallation that was not finished")
    if rest := await cleaning.finish():
        raise InstallRefused(rest)


async def wait(api: Api, namespace: str, timeout_s: float, say: Say) -> None:
    """Return when the controller and every node are ready; raises TimedOut."""
    controller = partial(waiting.deployment_missing, api, namespace, "culvert-controller")
    await waiting.until("the controller", controller, timeout_s, say)
    nodes = partial(waiting.daemon_set_missing, api, namespace, "culvert-node")
    await waiting.until("the nodes", nodes, timeout_s, say)


async def check_owner(api: Api, wanted: Wanted) -> None:
    """Objects of these names that somebody else manages are not overwritten: raises InstallRefused."""
    for document in wanted.objects:
        if document["kind"] not in ("Deployment", "DaemonSet", "ClusterRole"):
            continue
        try:
            found = await api.get(resource_of(document), document["metadata"]["name"], _namespace(document))
        except NotFound:
            continue
        if record.manager(found) == "Helm":
            raise InstallRefused(
                f"{name_of(found)} is managed by Helm: change it with `helm upgrade`, take it out with `helm uninstall`"
            )
        if not record.is_ours(found):
            raise InstallRefused(f"{name_of(found)} is there already, and not of `culvert install`: remove it first")


async def _bring_definition(api: Api, definition: Document, done: Done, say: Say) -> None:
    name = definition["metadata"]["name"]
    try:
        found = await api.get(DEFINITIONS, name)
    except NotFound:
        found = None
    if found is not None and not record.is_ours(found):
        served = [one["name"] for one in found["spec"]["versions"] if one.get("served")]
        if "v1" not in served:
            raise InstallRefused(f"{name} is there in {', '.join(served)} only; the controller needs v1: upgrade it")
        done.left.append(name)
        say(f"{name} is there already, of somebody else's: left as it is")
        return
    await _apply(api, definition)
    done.applied.append(name_of(definition))
    missing = partial(waiting.definition_missing, api, name)
    await waiting.until(f"the kind {name}", missing, DEFINITION_TIMEOUT_S, say)


async def _apply(api: Api, document: Document) -> None:
    try:
        await api.apply(resource_of(document), document, _namespace(document))
    except NotFound as fault:
        if document["kind"] == "ServiceMonitor":
            sentence = "this cluster has no ServiceMonitor (Prometheus' operator): leave serviceMonitor.enabled off"
            raise InstallRefused(sentence) from fault
        if document["kind"] == "ConfigMap" or _namespace(document):
            raise InstallRefused(f"{name_of(document)}: is the namespace there? {fault}") from fault
        raise
    except ApiFault as fault:
        raise type(fault)(f"{name_of(document)}: {fault}", fault.status, fault.retry_after_s) from fault


def _namespace(document: Document) -> str:
    return str(document["metadata"].get("namespace", "")) if resource_of(document).is_namespaced else ""
