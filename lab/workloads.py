"""The pods of a lab: placed, addressed, run, replaced, ended; and what each node's agent and `lab exec` read of them.

One writer: the supervisor's loop. `PodSet` decides at once which pods there are; each pod's own task then does it, so
that the events of one pod run in order and different pods in parallel.
"""

import asyncio
import logging
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import capture, names
from lab.manifests import Manifest, Ref, ref_of
from lab.network import Network
from lab.nodes import Node
from lab.paths import LabPaths
from lab.plan import PlanExhausted
from lab.pods import PodFailed, PodIdentity, PodRun
from lab.podspec import InvalidPod, PodSpec, parse_pod
from lab.services import InvalidObject
from lab.store import Store

log = logging.getLogger(__name__)

# Two cores wire about this many pods at once; more only queue on the kernel's rtnl lock.
SET_UPS_AT_ONCE = 4


@dataclass(slots=True)
class _Pod:
    run: PodRun
    task: "asyncio.Task[None]"
    manifest: Manifest
    applied: Manifest
    ending: bool = False


class PodSet:
    """All pods that exist. `changed` is called when any of them looks different to services."""

    def __init__(
        self, paths: LabPaths, store: Store, network: Network, changed: Callable[[], None], hold_for_mesh: bool
    ) -> None:
        self._hold_for_mesh = hold_for_mesh
        self._paths = paths
        self._store = store
        self._network = network
        self._changed = changed
        self._pods: dict[Ref, _Pod] = {}
        self._slots = asyncio.Semaphore(SET_UPS_AT_ONCE)

    def apply(self, manifest: Manifest) -> tuple[str, tuple[str, ...]]:
        """Take a checked Pod; the outcome and what of it has no effect here. Raises InvalidObject."""
        ref = ref_of(manifest)
        existing = self._pods.get(ref)
        if existing is not None and existing.applied == manifest:
            return "unchanged", ()
        if existing is not None and not existing.ending and existing.applied.get("spec") == manifest.get("spec"):
            existing.applied = manifest
            self._relabel(existing, manifest["metadata"])
            return "configured", ()
        run, admitted = self._admit(manifest)
        after = existing.task if existing is not None else None
        if existing is not None:
            self._end(ref, existing, existing.run.spec.grace_s)
        task = asyncio.get_running_loop().create_task(self._live(ref, run, after), name=str(ref))
        self._pods[ref] = _Pod(run, task, admitted, manifest)
        self._show(ref)
        return "replaced" if existing is not None else "created", run.spec.unused

    async def delete(self, ref: Ref, grace_s: float | None) -> None:
        """End a pod and wait until nothing of it is left; raises KeyError."""
        pod = self._pods[ref]
        self._end(ref, pod, pod.run.spec.grace_s if grace_s is None else grace_s)
        await asyncio.wait([pod.task])

    async def delete_all(self, grace_s: float) -> None:
        """End all pods at once."""
        pods = list(self._pods.items())
        for ref, pod in pods:
            self._end(ref, pod, min(grace_s, pod.run.spec.grace_s))
        if pods:
            await asyncio.wait([pod.task for _, pod in pods])

    def has(self, ref: Ref) -> bool:
        """Whether there is such a pod."""
        return ref in self._pods

    def applied(self, ref: Ref) -> Manifest:
        """The manifest as the user gave it; raises KeyError."""
        return self._pods[ref].applied

    def reapply(self, ref: Ref) -> None:
        """Replace a pod by a fresh one of the same manifest; raises KeyError and InvalidObject."""
        pod = self._pods[ref]
        applied, pod.applied = pod.applied, {}
        self.apply(applied)

    def summaries(self) -> list[dict[str, Any]]:
        """For `lab status`."""
        found = []
        for ref, pod in sorted(self._pods.items()):
            status = pod.run.status()
            found.append(
                {
                    "namespace": ref.namespace,
                    "name": ref.name,
                    "node": pod.run.identity.node.name,
                    "phase": "Terminating" if pod.ending else status["phase"],
                    "ready": not pod.ending and _is_ready(status),
                    "why": "is being ended" if pod.ending else pod.run.why_not_ready(),
                    "ips": list(pod.run.identity.ips),
                    "netns": str(pod.run.netns_path),
                    "pid": pod.run.sandbox_pid,
                    "restarts": sum(c["restartCount"] for c in status["containerStatuses"]),
                    "mesh": self._mesh_state(ref, pod),
                    "labels": pod.manifest["metadata"]["labels"],
                }
            )
        return found

    def _mesh_state(self, ref: Ref, pod: _Pod) -> dict[str, Any]:
        if not self._hold_for_mesh:
            return {"asked": False, "state": "", "reason": ""}
        row = capture.row_of(pod.run.identity.node, pod.run.identity.uid)
        asked = self._asks_for_mesh(ref)
        settled = capture.is_decided(row) if asked else row is None
        found = row or {}
        return {"asked": asked, "settled": settled, "state": found.get("state", ""), "reason": found.get("reason", "")}

    def _admit(self, manifest: Manifest) -> tuple[PodRun, Manifest]:
        ref = ref_of(manifest)
        try:
            spec = parse_pod(manifest, {})
            node = self._place(spec)
            identity = self._identify(ref, spec, node)
            spec = parse_pod(manifest, self._facts(identity, spec))
        except InvalidPod as error:
            raise InvalidObject(error.faults) from error
        except PlanExhausted as error:
            raise InvalidObject([str(error)]) from error
        admitted = {
            **manifest,
            "metadata": {**manifest["metadata"], "uid": identity.uid},
            "spec": {**manifest["spec"], "nodeName": node.name, "serviceAccountName": spec.service_account},
        }

        def config_map(name: str) -> Manifest | None:
            return self._store.get(Ref("ConfigMap", ref.namespace, name))

        return PodRun(self._paths, identity, spec, config_map, lambda: self._show(ref)), admitted

    def _place(self, spec: PodSpec) -> Node:
        nodes = self._network.nodes
        if spec.node:
            if spec.node not in nodes:
                raise InvalidObject([f"spec.nodeName {spec.node!r} is no node of this lab: {', '.join(nodes)}"])
            return nodes[spec.node]
        load = [pod.run.identity.node.name for pod in self._pods.values()]
        return min(nodes.values(), key=lambda node: load.count(node.name))

    def _identify(self, ref: Ref, spec: PodSpec, node: Node) -> PodIdentity:
        if spec.host_network:
            ips = (str(node.plan.ipv4), str(node.plan.ipv6))
        else:
            ipv4, ipv6 = node.plan.pod(node.numbers.allocate())
            ips = (str(ipv4), str(ipv6))
        uid = str(uuid.uuid4())
        link = names.link_name(uid, ref.name)
        return PodIdentity(ref.namespace, ref.name, uid, node, ips, link)

    def _facts(self, identity: PodIdentity, spec: PodSpec) -> dict[str, str]:
        return {
            "name": identity.name,
            "namespace": identity.namespace,
            "uid": identity.uid,
            "node": identity.node.name,
            "service_account": spec.service_account,
            "ip": identity.ips[0],
            "ips": ",".join(identity.ips),
            "host_ip": str(identity.node.plan.ipv4),
        }

    async def _live(self, ref: Ref, run: PodRun, after: "asyncio.Task[None] | None") -> None:
        """A pod from nothing to nothing; `_end` cancels it once, which ends its programs."""
        try:
            await self._begin(ref, run, after)
            await run.run()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            _take_cancellation()
        except PodFailed:
            await _until_cancelled()
        except Exception as error:
            log.exception("%s", ref)
            run.fail(f"the lab failed: {error}")
            await _until_cancelled()
        await self._finish(ref, run)

    async def _begin(self, ref: Ref, run: PodRun, after: "asyncio.Task[None] | None") -> None:
        if after is not None:
            await asyncio.wait([after])
        async with self._slots:
            if not run.spec.host_network:
                run.netns = self._network.claim_pod_netns(run.identity.node, ref.namespace, ref.name)
            files = self._paths.pod_files(ref.namespace, ref.name)
            # Half-wired is worse than wired: a cancellation waits until there is something whole to take down.
            setting_up = asyncio.get_running_loop().create_task(run.set_up(files), name=f"set up {ref}")
            try:
                await asyncio.shield(setting_up)
            except asyncio.CancelledError:
                await asyncio.wait([setting_up])
                raise
        self._publish(ref, run)
        if self._hold_for_mesh and not run.spec.host_network:
            await capture.until_decided(
                run.identity.node, run.identity.uid, lambda: self._asks_for_mesh(ref), run.wait_for
            )

    def _asks_for_mesh(self, ref: Ref) -> bool:
        namespace = self._store.get(Ref("Namespace", "", ref.namespace))
        labels = namespace["metadata"]["labels"] if namespace is not None else {}
        return capture.asks_for_mesh(self._pods[ref].manifest["metadata"]["labels"], labels)

    async def _finish(self, ref: Ref, run: PodRun) -> None:
        self._paths.pod_entry(ref.namespace, ref.name).unlink(missing_ok=True)
        await run.tear_down()
        self._agent_file(run, ref).unlink(missing_ok=True)
        shutil.rmtree(self._paths.pod_files(ref.namespace, ref.name), ignore_errors=True)
        if not run.spec.host_network:
            run.identity.node.numbers.release(run.identity.node.number_of(run.identity.ips[0]))
            self._network.release_netns(run.netns)
        own = self._pods.get(ref)
        if own is not None and own.run is run:
            del self._pods[ref]
            self._store.remove(ref)
            self._changed()

    def _end(self, ref: Ref, pod: _Pod, grace_s: float) -> None:
        pod.run.grace_s = min(grace_s, pod.run.grace_s) if pod.ending else grace_s
        if not pod.ending:
            pod.ending = True
            self._show(ref)
            pod.task.cancel()

    def _relabel(self, pod: _Pod, metadata: Manifest) -> None:
        kept = {"uid": pod.manifest["metadata"]["uid"]}
        pod.manifest = {**pod.manifest, "metadata": {**metadata, **kept}}
        ref = ref_of(pod.manifest)
        if self._agent_file(pod.run, ref).exists():
            self._publish(ref, pod.run)
        self._show(ref)

    def _show(self, ref: Ref) -> None:
        """Write the object with its status as it is now."""
        pod = self._pods.get(ref)
        if pod is None:
            return
        manifest = {**pod.manifest, "status": pod.run.status()}
        if pod.ending:
            manifest["metadata"] = {**manifest["metadata"], "deletionTimestamp": "1970-01-01T00:00:00Z"}
        if self._store.put(manifest):
            self._changed()

    def _publish(self, ref: Ref, run: PodRun) -> None:
        """Tell the node's agent that the pod runs, and `lab exec` how to enter it."""
        pod = self._pods[ref]
        metadata = pod.manifest["metadata"]
        facts = {
            "uid": run.identity.uid,
            "namespace": ref.namespace,
            "name": ref.name,
            "service_account": run.spec.service_account,
            "node": run.identity.node.name,
            "ips": list(run.identity.ips),
            "netns": str(run.netns_path),
            "labels": metadata["labels"],
            "annotations": metadata["annotations"],
            "host_network": run.spec.host_network,
        }
        self._paths.write(self._agent_file(run, ref), facts)
        self._paths.write(self._paths.pod_entry(ref.namespace, ref.name), run.entry())

    def _agent_file(self, run: PodRun, ref: Ref) -> Path:
        return run.identity.node.runtime / "pods" / f"{ref.namespace}_{ref.name}.json"


def _is_ready(status: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])


def _take_cancellation() -> None:
    """The cancellation has been heard: what follows may be awaited like anything else."""
    task = asyncio.current_task()
    assert task is not None, "called on a task"
    task.uncancel()


async def _until_cancelled() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    _take_cancellation()
