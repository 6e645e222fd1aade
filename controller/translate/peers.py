"""PeerAuthentications to policies: STRICT means that a connection without an identity is denied.

What applies to a workload is the most specific word said: of the policy that selects it, else of its namespace, else of
the root namespace; UNSET says nothing. A workload that is STRICT on all ports carries the one static policy. A workload
whose ports differ carries the converted form of its own policy instead, which then says it all. DISABLE is PERMISSIVE
here: a node's proxy takes part in every connection of a captured pod, and plain text is what both let in.
"""

from controller.index.index import Index
from controller.index.objects import Mode, PeerAuthentication, Pod, selects
from controller.translate.facts import Mesh
from mesh.wire.authorization_pb2 import Action, Authorization, Clause, Match, Rule, Scope, StringMatch

# Neither is a name that Kubernetes allows, so no AuthorizationPolicy can be called so.
STATIC_STRICT = "istio_converted_static_strict"
CONVERTED = "converted_peer_authentication_"


def strict_authorization(mesh: Mesh) -> Authorization:
    """The policy that denies whoever has no identity."""
    return _deny(mesh.root_namespace, STATIC_STRICT, [Rule(clauses=[Clause(matches=[_anonymous()])])])


def peer_authorization(peer: PeerAuthentication, index: Index) -> Authorization | None:
    """The converted form of a policy whose ports differ from its own or inherited mode; None if it needs none."""
    if peer.namespace == index.root_namespace or not peer.selector:
        return None
    mode = _effective(peer, index)
    rules = _strict_rules(peer, mode, index)
    return _deny(peer.namespace, CONVERTED + peer.name, rules) if rules else None


def policies_of_peers(pod: Pod, index: Index) -> list[str]:
    """The keys of the policies that a pod carries because of PeerAuthentications."""
    own = _selecting(pod, index)
    if own is not None and peer_authorization(own, index) is not None:
        return [f"{own.namespace}/{CONVERTED}{own.name}"]
    mode = _effective(own, index) if own is not None else _inherited(pod.namespace, index)
    return [f"{index.root_namespace}/{STATIC_STRICT}"] if mode is Mode.STRICT else []


def _selecting(pod: Pod, index: Index) -> PeerAuthentication | None:
    """The policy of the pod's namespace that selects it; selectors of the root namespace count for nothing."""
    if pod.namespace == index.root_namespace:
        return None
    peers = index.peers_in(pod.namespace)
    return next((peer for peer in peers if peer.selector and selects(peer.selector, pod.labels)), None)


def _inherited(namespace: str, index: Index) -> Mode:
    for place in (namespace, index.root_namespace):
        wide = next((peer for peer in index.peers_in(place) if not peer.selector), None)
        if wide is not None and wide.mode is not Mode.UNSET:
            return wide.mode
    return Mode.PERMISSIVE


def _effective(peer: PeerAuthentication, index: Index) -> Mode:
    return peer.mode if peer.mode is not Mode.UNSET else _inherited(peer.namespace, index)


def _strict_rules(peer: PeerAuthentication, mode: Mode, index: Index) -> list[Rule]:
    """The rules by which ports differ from `mode`; none if no port does."""
    if mode is Mode.STRICT:
        lenient = [port for port, wanted in peer.ports if wanted in (Mode.PERMISSIVE, Mode.DISABLE)]
        exempt = [Clause(matches=[Match(not_destination_ports=[port])]) for port in lenient]
        anonymous = Clause(matches=[_anonymous()])
        # One would do; Istio's has one for each level that says STRICT, and so has ours.
        own = [anonymous] if peer.mode is Mode.STRICT else []
        above = [anonymous] if _inherited(peer.namespace, index) is Mode.STRICT else []
        return [Rule(clauses=[*own, *exempt, *above])] if lenient else []
    strict = [port for port, wanted in peer.ports if wanted is Mode.STRICT]
    return [Rule(clauses=[Clause(matches=[_anonymous(port)])]) for port in strict]


def _anonymous(*ports: int) -> Match:
    nobody = StringMatch()
    nobody.presence.SetInParent()
    return Match(not_principals=[nobody], destination_ports=ports)


def _deny(namespace: str, name: str, rules: list[Rule]) -> Authorization:
    return Authorization(namespace=namespace, name=name, scope=Scope.WORKLOAD_SELECTOR, action=Action.DENY, rules=rules)
