"""PeerAuthentication: which mode holds for a workload on which port, over all levels, against a plain reading of it."""

from itertools import product

import pytest

from controller.index.index import Index
from controller.index.objects import Change, Kind, Mode, PeerAuthentication, Pod
from controller.translate.facts import Mesh
from controller.translate.peers import (
    CONVERTED,
    STATIC_STRICT,
    peer_authorization,
    policies_of_peers,
    strict_authorization,
)
from mesh.wire.authorization_pb2 import Authorization, Match

ROOT = "culvert-system"
POD = Pod("a", "p", {"app": "x"})


def index_of(*peers: PeerAuthentication) -> Index:
    index = Index(ROOT)
    index.apply([Change(Kind.PEER_AUTHENTICATION, peer.key, peer) for peer in peers])
    index.apply([Change(Kind.POD, POD.key, POD)])
    return index


def denies_anonymous(policy: Authorization, port: int) -> bool:
    """The evaluation of the reference, for a peer without an identity: only `not_principals` and ports occur."""

    def holds(match: Match) -> bool:
        wanted = not match.destination_ports or port in match.destination_ports
        return wanted and port not in match.not_destination_ports

    return any(all(any(map(holds, clause.matches)) for clause in rule.clauses) for rule in policy.rules)


def is_strict(index: Index, port: int) -> bool:
    by_key = {f"{ROOT}/{STATIC_STRICT}": strict_authorization(Mesh())}
    for peer in index.all(Kind.PEER_AUTHENTICATION):
        assert isinstance(peer, PeerAuthentication)
        if (converted := peer_authorization(peer, index)) is not None:
            by_key[f"{peer.namespace}/{CONVERTED}{peer.name}"] = converted
    return any(denies_anonymous(by_key[key], port) for key in policies_of_peers(POD, index))


@pytest.mark.parametrize(
    "modes", list(product(Mode, Mode, Mode, Mode)), ids=lambda modes: "-".join(m.name for m in modes)
)
def test_the_most_specific_word_counts(modes: tuple[Mode, Mode, Mode, Mode]) -> None:
    mesh, namespace, workload, port = modes
    index = index_of(
        PeerAuthentication(ROOT, "m", mode=mesh),
        PeerAuthentication("a", "n", mode=namespace),
        PeerAuthentication("a", "w", {"app": "x"}, workload, ((80, port), (81, port))),
    )
    said = [mode for mode in (workload, namespace, mesh) if mode is not Mode.UNSET]
    general = bool(said) and said[0] is Mode.STRICT
    on_port = general if port is Mode.UNSET else port is Mode.STRICT
    assert is_strict(index, 9999) == general
    assert is_strict(index, 80) == on_port
    assert is_strict(index, 81) == on_port


def test_the_oldest_of_two_counts() -> None:
    young = PeerAuthentication("a", "a-young", mode=Mode.STRICT, created="2026-02-01T00:00:00Z")
    old = PeerAuthentication("a", "b-old", mode=Mode.PERMISSIVE, created="2026-01-01T00:00:00Z")
    undated = PeerAuthentication("a", "0-undated", mode=Mode.STRICT)
    assert not is_strict(index_of(young, old, undated), 80)
    assert is_strict(index_of(young, undated), 80)


def test_a_policy_for_others_does_not_count() -> None:
    other = PeerAuthentication("a", "w", {"app": "y"}, Mode.STRICT)
    elsewhere = PeerAuthentication("b", "n", mode=Mode.STRICT)
    selecting_root = PeerAuthentication(ROOT, "r", {"app": "x"}, Mode.STRICT)
    assert not is_strict(index_of(other, elsewhere, selecting_root), 80)
