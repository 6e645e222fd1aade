"""Taking an installation out: pods let go, nodes cleaned, objects removed, each step bounded and safe to repeat.

The order matters. First the labels go, so that the agents let their pods go while everything still works; then the
agents end; then a DaemonSet of the same image removes from every node what outlives processes (CNI entry, programs,
pins); then the objects. What could not be cleaned is said by name and never hidden.

Where Helm removes the objects, its chart has all but that last step done by a Job before (`release`). What the
controller has made stays then: it runs and would make it again, and a later installation goes on under the same root.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cli.install import kinds, record, waiting
from cli.install.cleaner import CLEANER
from cli.install.cleaning import NODE, Cleaning, pods_gone, silent_nodes
from cli.install.kinds import DEPLOYMENTS, Document
from cli.install.record import Ref, is_ours, manager
from cli.install.waiting import Say, TimedOut
from cli.presence import goes_by_istio_labels
from mesh.enrolment import CAPTURE_ANNOTATION, CAPTURED, MESH_LABEL, asked_by
from mesh.kube.api import Api, Selection
from mesh.kube.documents import annotations_of, labels_of
from mesh.kube.errors import NotFound
from mesh.kube.resources import (
    AUTHORIZATION_POLICIES,
    CONFIG_MAPS,
    DEFINITIONS,
    LEASES,
    NAMESPACES,
    PEER_AUTHENTICATIONS,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Resource,
)

# Made by the controller, and so not part of any list of ours.
_MADE = (
    (SECRETS, "culvert-ca"),
    (CONFIG_MAPS, "culvert-ca-root"),
    (CONFIG_MAPS, record.NAME),
    (LEASES, "culvert-controller"),
)
# Rights for an uninstallation by Helm that was broken off; its Job ends by itself.
_RIGHTS = tuple(
    (kinds.resource("rbac.authorization.k8s.io/v1", kind), "culvert-uninstall")
    for kind in ("ClusterRoleBinding", "ClusterRole", "RoleBinding", "Role")
)
_OF_HELM = (*_RIGHTS, (SERVICE_ACCOUNTS, "culvert-uninstall"))
_TEMPLATE = "{} {}: new pods of it carry the label {} again: take it out of the template"
_REST = (
    "daemonset {}: stays and cleans such a node when it is back; then repeat `{}`. "
    "For one that does not come back: kubectl delete node. {} gives it up"
)
_NOT_OF_RELEASE = (
    "deployment {0}/culvert-controller is not of Helm's release {1}: nothing was done. Was this Job applied with what "
    "`helm template` prints? Leave it out there (--no-hooks); before its objects are removed, run "
    "`culvert uninstall -n {0}`"
)
_NOTHING = (
    "namespace {} has no installation. Were its objects removed in another way, nodes still carry programs and the CNI "
    "entry: `culvert install` and then `culvert uninstall` clean them"
)
_RELEASE = "meta.helm.sh/release-name"
_POLICIES = (AUTHORIZATION_POLICIES, PEER_AUTHENTICATIONS)


class Refused(Exception):
    """What is there is not what was to be removed; the text says what to do."""


@dataclass(slots=True)
class Removed:
    """What was done and what stays, a line each."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Removal:
    """One removal. `purge` also takes away what users wrote: policies, and the namespace with whatever is in it.

    `release` is that of Helm which is being uninstalled, if one is.
    """

    api: Api
    namespace: str
    say: Say
    timeout_s: float
    purge: bool = False
    release: str = ""

    async def run(self, objects: Sequence[Ref]) -> Removed:
        """Everything, in order; raises ApiFault."""
        result = Removed()
        helm = await self.is_helms()
        is_clean = await self.leave_nodes(result)
        if helm:
            result.left.append(
                f"the objects are Helm's: {'' if is_clean else 'then '}remove them with `helm uninstall`"
            )
            return result
        await self.remove_objects(objects, result, keep=not is_clean)
        await self.remove_definitions(result)
        if is_clean:
            await self.remove_namespace(result)
        return result

    async def leave_nodes(self, result: Removed) -> bool:
        """What goes away with no object; False if some nodes could not be cleaned. Raises Refused, ApiFault."""
        if self.release and not await self._is_of_release():
            raise Refused(_NOT_OF_RELEASE.format(self.namespace, self.release))
        await self.let_go(result)
        is_clean = await self.clean_nodes(result)
        await self.strip_annotations()
        return is_clean

    @property
    def nodes(self) -> Cleaning:
        """What is done on nodes."""
        return Cleaning(self.api, self.namespace, self.say, self.timeout_s)

    async def is_helms(self) -> bool:
        """Whether Helm has made the installation."""
        try:
            return manager(await self.api.get(DEPLOYMENTS, "culvert-controller", self.namespace)) == "Helm"
        except NotFound:
            return False

    async def _is_of_release(self) -> bool:
        """Whether Helm has made what is there, if anything is: by its own mark, which rendering does not leave."""
        try:
            found = await self.api.get(DEPLOYMENTS, "culvert-controller", self.namespace)
        except NotFound:
            return True
        return annotations_of(found).get(_RELEASE) == self.release

    # --- pods

    async def let_go(self, result: Removed) -> None:
        """Take our labels away and wait until no pod is captured any more."""
        for resource in (NAMESPACES, PODS):
            for found in await self._all(Selection(resource, label_selector=MESH_LABEL, metadata_only=True)):
                if labels_of(found).get("app.kubernetes.io/part-of") == "culvert":
                    continue  # our own pods and namespace say what they say for as long as they are
                await self._strip(resource, found, {"labels": {MESH_LABEL: None}})
                what = "namespace " if resource is NAMESPACES else f"pod {found['metadata']['namespace']}/"
                result.done.append(f"label {MESH_LABEL} of {what}{found['metadata']['name']}")
                for owner in found["metadata"].get("ownerReferences") or ():
                    _add_once(result.left, _TEMPLATE.format(owner["kind"].lower(), owner["name"], MESH_LABEL))
        if await self.nodes.node_set() is None:
            return  # nobody is there to let go or to say so
        try:
            await waiting.until("pods to be let go", self._captured, self.timeout_s, self.say)
        except TimedOut as late:
            result.left.append(str(late))

    async def strip_annotations(self) -> None:
        """What agents wrote on pods; once no agent is left that would write it again."""
        for pod in await self._annotated():
            await self._strip(PODS, pod, {"annotations": {CAPTURE_ANNOTATION: None}})

    async def _captured(self) -> list[str]:
        """Pods that agents still have to let go: not those that Istio's label keeps, nor those on silent nodes."""
        silent, kept = await silent_nodes(self.api), await self._kept_by_istio_labels()
        return [
            f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']} is captured"
            for pod in await self._annotated()
            if pod["metadata"]["annotations"][CAPTURE_ANNOTATION] == CAPTURED and _is_alive(pod)
            if pod["spec"].get("nodeName") not in silent and not kept(pod)
        ]

    async def _kept_by_istio_labels(self) -> Callable[[Document], bool]:
        """Which pods stay captured for as long as there is an agent, because of a label that is not ours to take."""
        node_set = await self.nodes.node_set()
        if node_set is None or not goes_by_istio_labels(node_set):
            return lambda pod: False
        spaces = await self._all(Selection(NAMESPACES, metadata_only=True))
        labels = {one["metadata"]["name"]: labels_of(one) for one in spaces}

        def is_kept(pod: Document) -> bool:
            around = labels.get(pod["metadata"]["namespace"], {})
            return asked_by(labels_of(pod), around, istio_labels=True).enrol

        return is_kept

    async def _annotated(self) -> list[Document]:
        pods = await self._all(Selection(PODS))
        return [pod for pod in pods if CAPTURE_ANNOTATION in annotations_of(pod)]

    async def _strip(self, resource: Resource, found: Document, change: Document) -> None:
        metadata = found["metadata"]
        with contextlib.suppress(NotFound):
            await self.api.merge_patch(resource, metadata["name"], {"metadata": change}, metadata.get("namespace", ""))

    # --- nodes

    async def clean_nodes(self, result: Removed) -> bool:
        """End the nodes' pods and remove what outlives them on every node; False if some could not be cleaned yet."""
        node_set = await self.nodes.node_set()
        if node_set is not None:
            await self.nodes.start(node_set)
            result.done.append(f"daemonset {self.namespace}/{NODE}")
        if not await self.nodes.is_under_way():
            await self._say_what_is_not_known(result)
            return True
        cleaned, dirty = await self.nodes.wait()
        result.done.append(f"what was pinned and entered on {cleaned} nodes")
        result.left += dirty
        if dirty and not self.purge:
            ways = (
                ("helm uninstall", "`helm uninstall --no-hooks`") if self.release else ("culvert uninstall", "--purge")
            )
            result.left.append(_REST.format(f"{self.namespace}/{CLEANER}", *ways))
            return False
        if rest := await self.nodes.finish():
            result.left.append(rest)
        return True

    async def _say_what_is_not_known(self, result: Removed) -> None:
        """Nothing is there that could clean nodes; whether something was, only an installation's other objects tell."""
        try:
            await self.api.get(DEPLOYMENTS, "culvert-controller", self.namespace)
        except NotFound:
            self.say(_NOTHING.format(self.namespace))
            return
        result.left.append(f"no DaemonSet {NODE} is there: whether nodes are clean is not known")

    # --- objects

    async def remove_objects(self, objects: Sequence[Ref], result: Removed, *, keep: bool = False) -> None:
        """The objects of the installation, the last first, and those that the controller or a Helm of before has made.

        `keep`: not the record and not what nodes are cleaned with.
        """
        kept = {"Namespace"} | ({"ServiceAccount"} if keep else set())
        for ref in reversed(objects):
            if ref.kind not in kept and await record.removed(self.api, ref):
                result.done.append(str(ref))
        gone = partial(pods_gone, self.api, self.namespace, "culvert-controller")
        try:
            await waiting.until("the controllers to end", gone, self.timeout_s, self.say)
        except TimedOut as late:
            result.left.append(str(late))
        for kind, name in (*_MADE, *_OF_HELM):
            if keep and name == record.NAME:
                continue
            try:
                await self.api.delete(kind, name, self.namespace)
                result.done.append(f"{kind} {self.namespace + '/' if kind.is_namespaced else ''}{name}")
            except NotFound:
                pass

    async def remove_definitions(self, result: Removed) -> None:
        """The kinds of policies, if we brought them and nobody uses them (or all goes)."""
        for policies in _POLICIES:
            name = str(policies)
            try:
                definition = await self.api.get(DEFINITIONS, name)
                used = len(await self._all(Selection(policies, metadata_only=True)))
            except NotFound:
                continue
            if not is_ours(definition):
                continue
            if used and not self.purge:
                result.left.append(f"{name}: {used} objects of this kind exist (--purge removes them with it)")
                continue
            await self.api.delete(DEFINITIONS, name, uid=definition["metadata"]["uid"])
            result.done.append(f"customresourcedefinition {name}")

    async def remove_namespace(self, result: Removed) -> None:
        """The namespace, if we made it and nothing of a user's is in it (or all goes)."""
        try:
            namespace = await self.api.get(NAMESPACES, self.namespace)
        except NotFound:
            return
        if not is_ours(namespace):
            return
        kept = [] if self.purge else await self._things_of_users()
        if kept:
            result.left.append(f"namespace {self.namespace}: holds {', '.join(kept)} (--purge removes it all the same)")
            return
        await self.api.delete(NAMESPACES, self.namespace, uid=namespace["metadata"]["uid"])
        try:
            await waiting.until("the namespace to go", self._namespace_left, self.timeout_s, self.say)
            result.done.append(f"namespace {self.namespace}")
        except TimedOut as late:
            result.left.append(str(late))

    async def _namespace_left(self) -> list[str]:
        try:
            found = await self.api.get(NAMESPACES, self.namespace)
        except NotFound:
            return []
        conditions = waiting.conditions_of(found)
        return [one["message"] for one in conditions if one["status"] == "True"] or ["it is being emptied"]

    async def _things_of_users(self) -> list[str]:
        found = []
        for resource in (SECRETS, *_POLICIES, PODS):
            try:
                items = await self._all(Selection(resource, self.namespace))
            except NotFound:
                continue
            mine = [one for one in items if _is_a_users(one)]
            found += [f"{resource} {one['metadata']['name']}" for one in mine]
        return found

    async def _all(self, selection: Selection) -> list[Document]:
        return [item async for page in self.api.pages(selection) for item in page]


def _add_once(lines: list[str], line: str) -> None:
    if line not in lines:
        lines.append(line)


def _is_alive(pod: Document) -> bool:
    return pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def _is_a_users(found: Document) -> bool:
    is_token = found.get("type", "").startswith("kubernetes.io/service-account-token")
    return labels_of(found).get("app.kubernetes.io/part-of") != "culvert" and not is_token
