"""The data path under the programs: notes by descriptor, from connect() in one pod to accept() in the other."""

import os
import socket
from collections.abc import Iterator

import pytest

from bpf.plane import Note, NoteKind, Plane
from mesh.reasons import Reason
from tests.bpf.conftest import (  # noqa: F401
    Ztunnel,
    enrol,
    key,
    loaded,
    machine,
    net,
    plane,
    session_plane,
)
from tests.bpf.dialling import is_quiet
from tests.bpf.topology import Topology
from tests.engine.conftest import CLIENT_ID, SERVER_ID
from tests.support.engine import Engine
from tests.support.pki import Credential
from tests.support.sockets import is_reset, read_exactly
from tests.support.tables import Tables

pytestmark = [pytest.mark.root, pytest.mark.slow]


def hand_over(engine: Engine, number: int, uid: str, identity: str, ztunnel: Ztunnel) -> None:
    netns = os.open(ztunnel.place.path, os.O_RDONLY | os.O_CLOEXEC)
    code = engine.add_pod(
        number,
        uid,
        identity,
        outbound=ztunnel.outbound4,
        outbound6=ztunnel.outbound6,
        inbound=ztunnel.inbound,
        hbone=ztunnel.hbone,
        netns=netns,
    )
    assert not code


@pytest.fixture
def engine(
    plane: Plane,  # noqa: F811
    net: Topology,  # noqa: F811
    client_credential: Credential,
    server_credential: Credential,
) -> Iterator[Engine]:
    with Engine(notes_map=plane.map_fd("notes"), flows_map=plane.map_fd("flows"), connect_timeout_ms=10000) as made:
        assert not made.put_identity(CLIENT_ID, client_credential)
        assert not made.put_identity(SERVER_ID, server_credential)
        tables = Tables().workload(1, "a", CLIENT_ID, str(net.a.address4), str(net.a.address6))
        made.publish(tables.workload(2, "b", SERVER_ID, str(net.b.address4), str(net.b.address6)))
        for number, (place, identity) in enumerate(((net.a, CLIENT_ID), (net.b, SERVER_ID)), 1):
            enrol(plane, place)
            hand_over(made, number, "ab"[number - 1], identity, Ztunnel(plane, place))
        yield made


def test_both_applications_see_each_other_and_not_the_mesh(
    engine: Engine,
    net: Topology,  # noqa: F811
) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        a, b = (str(p.address4 if family == socket.AF_INET else p.address6) for p in (net.a, net.b))
        with net.b.listen(b, 8080) as listener, net.a.socket(family) as near:
            listener.settimeout(10)  # a fresh veth resolves its first IPv6 neighbour slowly
            near.connect((b, 8080))
            far, _ = listener.accept()
            with far:
                near.sendall(b"hello")
                assert read_exactly(far, 5) == b"hello"
                assert near.getpeername()[:2] == (b, 8080)
                assert near.getsockname()[0] == a
                assert far.getpeername()[:2] == (a, near.getsockname()[1])
        outbound = engine.wait(lambda event: event.kind == 2 and event.direction == 1)
        inbound = engine.wait(lambda event: event.kind == 2 and event.direction == 2)
        for event in (outbound, inbound):
            assert (event.path, event.source, event.destination, event.sent) == (2, 1, 2, 5)
        assert outbound.downstream == inbound.downstream, "both ends name the application's own socket"


def dial_15001_in_vain(made: socket.socket) -> None:
    """Turned away, as soon as in connect() or later."""
    try:
        made.connect(("127.0.0.1", 15001))
        assert is_reset(made)
    except ConnectionError:
        pass


def test_a_dial_of_15001_that_nobody_captured_is_refused(
    engine: Engine,
    net: Topology,  # noqa: F811
) -> None:
    with net.a.socket() as made:
        dial_15001_in_vain(made)
    assert engine.wait_closed().reason == Reason.NO_NOTE


def test_a_connection_of_ztunnels_own_to_15001_is_not_taken_for_a_captured_one(
    engine: Engine,
    plane: Plane,  # noqa: F811
    net: Topology,  # noqa: F811
) -> None:
    """It brings a note, of another kind: an address in it is that of a client, and nowhere to go."""
    with net.b.listen(str(net.b.address4), 8080) as application, net.a.socket() as made:
        plane.put_note(made, Note(NoteKind.CLIENT, net.b.address4, 8080, netns=net.a.cookie))
        dial_15001_in_vain(made)
        assert engine.wait_closed().reason == Reason.NO_NOTE
        assert is_quiet(application)
