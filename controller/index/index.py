"""The one store of cluster objects, and what depends on what.

Its single writer is the pipeline task; everything else reads. `apply` takes a batch of changes and answers with the
`Target`s whose resources may differ now, so that a change of one pod re-translates that pod and not the world. The
rules of dependence stand in `_touch_*`, one per kind; they may name too much, never too little (a property test holds
incremental translation equal to a full one).
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from enum import Enum
from typing import NamedTuple, TypeVar, cast

from controller.index.objects import (
    AuthorizationPolicy,
    Change,
    EndpointSlice,
    Kind,
    Labels,
    Namespace,
    Node,
    Object,
    PeerAuthentication,
    Pod,
    Service,
    selects,
)

T = TypeVar("T")

Groups = Callable[[Object], Collection[str]]


class What(Enum):
    """What resources are made from."""

    POD = "pod"
    SERVICE = "service"
    SLICE = "slice"
    POLICY = "policy"
    PEER = "peer"
    STRICT = "strict"  # the one static policy


class Target(NamedTuple):
    """A source of resources: translate it again when it, or what it depends on, changes."""

    what: What
    key: str


STRICT = Target(What.STRICT, "")


class _Grouped(dict[str, set[str]]):
    """Keys by something they share; empty groups vanish."""

    def move(self, key: str, before: Collection[str], after: Collection[str]) -> None:
        for group in before:
            if group not in after and (members := self.get(group)) is not None:
                members.discard(key)
                if not members:
                    del self[group]
        for group in after:
            self.setdefault(group, set()).add(key)


class Index:
    """All objects, by kind and key, with the look-ups that translation and authorisation need."""

    def __init__(self, root_namespace: str) -> None:
        self.root_namespace = root_namespace
        self._objects: dict[Kind, dict[str, Object]] = {kind: {} for kind in Kind}
        self._by_namespace: dict[Kind, _Grouped] = {kind: _Grouped() for kind in Kind}
        self._pods_by_node = _Grouped()
        self._slices_by_service = _Grouped()
        self._slices_by_pod = _Grouped()

    # --- writing

    def apply(self, changes: Iterable[Change]) -> set[Target]:
        """Take a batch; the targets that may translate differently now."""
        touched: set[Target] = set()
        for change in changes:
            objects = self._objects[change.kind]
            before = objects.get(change.key)
            if before == change.object:
                continue
            if change.object is None:
                del objects[change.key]
            else:
                objects[change.key] = change.object
            self._regroup(change, before)
            touched.update(self._touched(before, change.object))
        return touched

    def _regroup(self, change: Change, before: Object | None) -> None:
        def move(grouped: _Grouped, groups: Groups) -> None:
            grouped.move(change.key, groups(before) if before else (), groups(change.object) if change.object else ())

        move(self._by_namespace[change.kind], lambda item: [getattr(item, "namespace", "")])
        if change.kind is Kind.POD:
            move(self._pods_by_node, lambda item: [cast(Pod, item).node])
        elif change.kind is Kind.ENDPOINT_SLICE:
            move(self._slices_by_service, lambda item: [cast(EndpointSlice, item).service])
            move(self._slices_by_pod, lambda item: {end.pod for end in cast(EndpointSlice, item).endpoints if end.pod})

    def _touched(self, before: Object | None, after: Object | None) -> Iterator[Target]:
        for item in (before, after):
            match item:
                case Pod():
                    yield Target(What.POD, item.key)
                case Service():
                    yield from self._touch_service(item)
                case EndpointSlice():
                    service = self.service(item.service)
                    yield from self._touch_slice(item, has_selector=service is None or bool(service.selector))
                case Node():
                    yield from (Target(What.POD, key) for key in self._pods_by_node.get(item.name, ()))
                case Namespace():
                    keys = self._by_namespace[Kind.SERVICE].get(item.name, ())
                    yield from (Target(What.SERVICE, key) for key in keys)
                case AuthorizationPolicy():
                    yield Target(What.POLICY, item.key)
                    if item.selector is not None:
                        yield from self._touch_pods(self._reach(item.namespace), item.selector)
                case PeerAuthentication():
                    yield from self._touch_peer(item)

    def _touch_service(self, service: Service) -> Iterator[Target]:
        yield Target(What.SERVICE, service.key)
        if service.selector:
            yield from self._touch_pods([service.namespace], service.selector)
        for key in self._slices_by_service.get(service.key, ()):
            yield from self._touch_slice(cast(EndpointSlice, self._objects[Kind.ENDPOINT_SLICE][key]))

    def _touch_slice(self, piece: EndpointSlice, *, has_selector: bool = False) -> Iterator[Target]:
        # A service with a selector takes no pod from a slice. Kubernetes rewrites its slices at each change of a pod,
        # and a hundred other pods stand in the same one.
        yield Target(What.SLICE, piece.key)
        if has_selector:
            return
        yield from (Target(What.POD, endpoint.pod) for endpoint in piece.endpoints if endpoint.pod)

    def _touch_peer(self, peer: PeerAuthentication) -> Iterator[Target]:
        yield STRICT
        reach = self._reach(peer.namespace)
        for namespace in reach:
            keys = self._by_namespace[Kind.PEER_AUTHENTICATION].get(namespace, ())
            yield from (Target(What.PEER, key) for key in keys)
        yield Target(What.PEER, peer.key)
        yield from self._touch_pods(reach, peer.selector or {})

    def _touch_pods(self, namespaces: Collection[str], selector: Labels) -> Iterator[Target]:
        pods = self._objects[Kind.POD]
        for namespace in namespaces:
            for key in self._by_namespace[Kind.POD].get(namespace, ()):
                if selects(selector, cast(Pod, pods[key]).labels):
                    yield Target(What.POD, key)

    def _reach(self, namespace: str) -> Collection[str]:
        """The namespaces that a policy of a namespace speaks for."""
        if namespace != self.root_namespace:
            return [namespace]
        return {*self._by_namespace[Kind.POD], *self._by_namespace[Kind.PEER_AUTHENTICATION]}

    # --- reading

    def get(self, kind: Kind, key: str) -> Object | None:
        """The object of a key."""
        return self._objects[kind].get(key)

    def pod(self, key: str) -> Pod | None:
        """The pod of a key."""
        return cast(Pod | None, self._objects[Kind.POD].get(key))

    def service(self, key: str) -> Service | None:
        """The service of a key."""
        return cast(Service | None, self._objects[Kind.SERVICE].get(key))

    def node(self, name: str) -> Node | None:
        """The node of a name."""
        return cast(Node | None, self._objects[Kind.NODE].get(name))

    def namespace(self, name: str) -> Namespace | None:
        """The namespace of a name."""
        return cast(Namespace | None, self._objects[Kind.NAMESPACE].get(name))

    def all(self, kind: Kind) -> Iterator[Object]:
        """Every object of a kind, by key."""
        for _, item in sorted(self._objects[kind].items()):
            yield item

    def counts(self) -> dict[str, int]:
        """How many objects there are of each kind."""
        return {kind.value: len(objects) for kind, objects in self._objects.items()}

    def services_of(self, pod: Pod) -> list[Service]:
        """The services that a pod serves, by selector or by an endpoint slice that names it."""
        found = [
            service
            for service in self._in(Kind.SERVICE, pod.namespace, Service)
            if service.selector and selects(service.selector, pod.labels)
        ]
        keys = {service.key for service in found}
        for key in sorted(self._slices_by_pod.get(pod.key, ())):
            service_key = cast(EndpointSlice, self._objects[Kind.ENDPOINT_SLICE][key]).service
            service = self.service(service_key)
            if service is not None and not service.selector and service_key not in keys:
                keys.add(service_key)
                found.append(service)
        return [service for service in found if not service.is_external]

    def policies_selecting(self, pod: Pod) -> list[AuthorizationPolicy]:
        """The policies of the pod's namespace and the root namespace whose selector selects it."""
        return [
            policy
            for namespace in dict.fromkeys((pod.namespace, self.root_namespace))
            for policy in self._in(Kind.AUTHORIZATION_POLICY, namespace, AuthorizationPolicy)
            if policy.selector is not None and selects(policy.selector, pod.labels)
        ]

    def peers_in(self, namespace: str) -> list[PeerAuthentication]:
        """The PeerAuthentications of a namespace, the one that counts most (the oldest) first."""
        found = list(self._in(Kind.PEER_AUTHENTICATION, namespace, PeerAuthentication))
        return sorted(found, key=lambda peer: peer.age_order)

    def pods_on(self, node: str) -> set[str]:
        """The keys of a node's pods."""
        return set(self._pods_by_node.get(node, ())) if node else set()

    def node_of(self, namespace: str, name: str, uid: str) -> str:
        """The node of the pod of this name and uid; "" if it is not known."""
        pod = self.pod(f"{namespace}/{name}")
        return pod.node if pod is not None and pod.uid == uid and not pod.is_terminal else ""

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """A pod with this service account runs on the node: its ztunnel may hold the identity."""
        pods = (self._objects[Kind.POD][key] for key in self._pods_by_node.get(node, ()) if node)
        return any(
            isinstance(pod, Pod)
            and not pod.is_terminal
            and (pod.namespace, pod.service_account) == (namespace, service_account)
            for pod in pods
        )

    def _in(self, kind: Kind, namespace: str, _: type[T]) -> Iterator[T]:
        objects = self._objects[kind]
        for key in sorted(self._by_namespace[kind].get(namespace, ())):
            yield cast(T, objects[key])
