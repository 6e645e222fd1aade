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
from lab.capture import MeshRules
from lab.manifests import Manifest, Ref, ref_of
from lab.network import Network
from lab.nodes import Node
from lab.paths import LabPaths
from lab.plan import PlanExhausted
from lab.pods import PodFailed, PodIdentity, PodRun
from lab.podspec import InvalidPod, PodSpec, parse_pod
from lab.services import InvalidObject
from lab.span.machines import Machines
from lab.span.remote import RemotePod
from lab.store import Store
from mesh.enrolment import asked_by

log = logging.getLogger(__name__)

# Two cores wire about this many pods at once; more only queue on the kernel's rtnl lock.
SET_UPS_AT_ONCE = 4


@dataclass(slots=True)
class _Pod:
    run: PodRun | RemotePod
    task: "asyncio.Task[None]"
    manifest: Manifest
    applied: Manifest
    ending: bool = False


class PodSet:
    """All pods that exist. `changed` is called when any of them looks different to services."""

    def __init__(
        self,
        paths: LabPaths,
        store: Store,
        network: Network,
        changed: Callable[[], None],
        mesh_rules: MeshRules,
        machines: Machines,
    ) -> None:
        self._machines = machines
        machines.changed = self._show_all_of
        self._mesh_rules = mesh_rules
        self._paths = paths
        self._store = store
        self._network = network
        self._changed = changed
        self._pods: dict[Ref, _Pod] = {}
        self._ending: set[str] = set()
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
        self._enter(ref, run, admitted, manifest)
        return "replaced" if existing is not None else "created", run.spec.unused

    def mirror(self, manifest: Manifest) -> None:
        """Take a pod of this machine's node as the home of the lab wants it; raises InvalidObject."""
        ref, metadata = ref_of(manifest), manifest["metadata"]
        existing = self._pods.get(ref)
        if "deletionTimestamp" in metadata:
            self.forget(ref, metadata.get("deletionGracePeriodSeconds"))
        elif existing is None or existing.run.identity.uid != metadata["uid"]:
            own = {key: value for key, value in manifest.items() if key != "status"}
            spec = parse_pod(own, {})
            ips = tuple(entry["ip"] for entry in manifest["status"]["podIPs"])
            identity = self._identity(ref, metadata["uid"], self._network.nodes[spec.node], ips)
            self._enter(ref, self._run_here(identity, own), own, own)
        elif existing.manifest["metadata"] != metadata:
            self._relabel(existing, metadata)

    def forget(self, ref: Ref, grace_s: float | None = None) -> None:
        """Begin to end a pod, if there is such a one."""
        pod = self._pods.get(ref)
        if pod is not None:
            self._end(ref, pod, pod.run.spec.grace_s if grace_s is None else grace_s)

    async def delete(self, ref: Ref, grace_s: float | None) -> None:
        """End a pod and wait until nothing of it is left; raises KeyError."""
        pod = self._pods[ref]
        self._end(ref, pod, pod.run.spec.grace_s if grace_s is None else grace_s)
        if not pod.run.is_away:  # else it ends when its machine is back: nobody knows when
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

    def is_ending(self, ref: Ref) -> bool:
        """Whether there is such a pod that is on its way out."""
        return ref in self._pods and self._pods[ref].ending

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
                    "uid": pod.run.identity.uid,
                    "node": pod.run.identity.node.name,
                    "phase": "Terminating" if pod.ending else status["phase"],
                    "ready": not pod.ending and _is_ready(status),
                    "why": "is being ended" if pod.ending else pod.run.why_not_ready(),
                    "ips": list(pod.run.identity.ips),
                    "netns": str(pod.run.netns_path) if pod.run.identity.node.is_local else "",
                    "away": pod.run.is_away,
                    "pid": pod.run.sandbox_pid,
                    "restarts": sum(c["restartCount"] for c in status["containerStatuses"]),
                    "mesh": self._mesh_state(ref, pod),
                    "labels": pod.manifest["metadata"]["labels"],
                }
            )
        return found

    def reports(self) -> dict[str, Any]:
        """What the home of the lab hears of the pods here, by uid; also of those that are being ended."""
        found = {}
        for ref, pod in self._pods.items():
            found[pod.run.identity.uid] = {
                "status": pod.run.status(),
                "why": pod.run.why_not_ready(),
                "mesh": self._mesh_state(ref, pod),
            }
        return {**dict.fromkeys(self._ending, _ENDING), **found}

    def _enter(self, ref: Ref, run: PodRun | RemotePod, admitted: Manifest, applied: Manifest) -> None:
        """Have a pod live, after the one of the same name that it replaces."""
        existing = self._pods.get(ref)
        if existing is not None:
            self._end(ref, existing, existing.run.spec.grace_s)
        after = existing.task if existing is not None else None
        task = asyncio.get_running_loop().create_task(self._live(ref, run, after), name=str(ref))
        self._pods[ref] = _Pod(run, task, admitted, applied)
        self._show(ref)

    def _mesh_state(self, ref: Ref, pod: _Pod) -> dict[str, Any]:
        if isinstance(pod.run, RemotePod):
            return pod.run.mesh_state()
        if not self._mesh_rules.hold:
            return {"asked": False, "state": "", "reason": ""}
        row = capture.row_of(pod.run.identity.node, pod.run.identity.uid)
        asked = self._asks_for_mesh(ref)
        settled = capture.is_decided(row) if asked else capture.is_let_go(row)
        found = row or {}
        said = {key: found.get(key, "") for key in ("state", "reason", "refused", "unguarded", "conflict")}
        return {"asked": asked, "settled": settled, **said}

    def _admit(self, manifest: Manifest) -> tuple[PodRun | RemotePod, Manifest]:
        ref = ref_of(manifest)
        try:
            spec = parse_pod(manifest, {})
            node = self._place(spec)
            identity = self._identify(ref, spec, node)
        except InvalidPod as error:
            raise InvalidObject(error.faults) from error
        except PlanExhausted as error:
            raise InvalidObject([str(error)]) from error
        admitted = {
            **manifest,
            "metadata": {**manifest["metadata"], "uid": identity.uid},
            "spec": {**manifest["spec"], "nodeName": node.name, "serviceAccountName": spec.service_account},
        }
        if node.is_local:
            return self._run_here(identity, manifest), admitted
        return RemotePod(identity, spec, self._machines.of(node.name), lambda: self._show(ref)), admitted

    def _run_here(self, identity: PodIdentity, manifest: Manifest) -> PodRun:
        ref = ref_of(manifest)
        spec = parse_pod(manifest, self._facts(identity, parse_pod(manifest, {})))

        def config_map(name: str) -> Manifest | None:
            return self._store.get(Ref("ConfigMap", ref.namespace, name))

        return PodRun(self._paths, identity, spec, config_map, lambda: self._show(ref))

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
        return self._identity(ref, str(uuid.uuid4()), node, ips)

    def _identity(self, ref: Ref, uid: str, node: Node, ips: tuple[str, ...]) -> PodIdentity:
        return PodIdentity(ref.namespace, ref.name, uid, node, ips, names.link_name(uid, ref.name))

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

    async def _live(self, ref: Ref, run: PodRun | RemotePod, after: "asyncio.Task[None] | None") -> None:
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

    async def _begin(self, ref: Ref, run: PodRun | RemotePod, after: "asyncio.Task[None] | None") -> None:
        if after is not None:
            await asyncio.wait([after])
        if isinstance(run, RemotePod):
            self._paths.write(self._paths.pod_entry(ref.namespace, ref.name), {"elsewhere": run.identity.node.name})
            return
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
        if self._mesh_rules.hold and not run.spec.host_network:
            await capture.until_decided(
                run.identity.node, run.identity.uid, lambda: self._asks_for_mesh(ref), run.wait_for
            )

    def _asks_for_mesh(self, ref: Ref) -> bool:
        namespace = self._store.get(Ref("Namespace", "", ref.namespace))
        labels = namespace["metadata"]["labels"] if namespace is not None else {}
        own = self._pods[ref].manifest["metadata"]["labels"]
        return asked_by(own, labels, istio_labels=self._mesh_rules.istio_labels).enrol

    async def _finish(self, ref: Ref, run: PodRun | RemotePod) -> None:
        self._paths.pod_entry(ref.namespace, ref.name).unlink(missing_ok=True)
        await run.tear_down()
        self._agent_file(run, ref).unlink(missing_ok=True)
        shutil.rmtree(self._paths.pod_files(ref.namespace, ref.name), ignore_errors=True)
        if not run.spec.host_network:
            run.identity.node.numbers.release(run.identity.node.number_of(run.identity.ips[0]))
            self._network.release_netns(run.netns)
        self._ending.discard(run.identity.uid)
        own = self._pods.get(ref)
        if own is not None and own.run is run:
            del self._pods[ref]
            self._store.remove(ref)
            self._changed()

    def _end(self, ref: Ref, pod: _Pod, grace_s: float) -> None:
        pod.run.grace_s = min(grace_s, pod.run.grace_s) if pod.ending else grace_s
        if not pod.ending:
            pod.ending = True
            self._ending.add(pod.run.identity.uid)
            self._show(ref)
            pod.task.cancel()

    def _relabel(self, pod: _Pod, metadata: Manifest) -> None:
        kept = {"uid": pod.manifest["metadata"]["uid"]}
        pod.manifest = {**pod.manifest, "metadata": {**metadata, **kept}}
        ref = ref_of(pod.manifest)
        if isinstance(pod.run, PodRun) and self._agent_file(pod.run, ref).exists():
            self._publish(ref, pod.run)
        self._show(ref)

    def _show_all_of(self, node: str) -> None:
        for ref, pod in list(self._pods.items()):
            if pod.run.identity.node.name == node:
                self._show(ref)

    def _show(self, ref: Ref) -> None:
        """Write the object with its status as it is now."""
        pod = self._pods.get(ref)
        if pod is None:
            return
        manifest = {**pod.manifest, "status": pod.run.status()}
        if pod.ending:
            ending = {"deletionTimestamp": "1970-01-01T00:00:00Z", "deletionGracePeriodSeconds": pod.run.grace_s}
            manifest["metadata"] = {**manifest["metadata"], **ending}
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

    def _agent_file(self, run: PodRun | RemotePod, ref: Ref) -> Path:
        return run.identity.node.runtime / "pods" / f"{ref.namespace}_{ref.name}.json"


# What a report says of a pod that another one has replaced and that is not gone yet.
_ENDING: dict[str, Any] = {
    "status": {"phase": "Running", "conditions": [], "containerStatuses": []},
    "why": "is being ended",
    "mesh": {"asked": False, "state": "", "reason": ""},
}


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
