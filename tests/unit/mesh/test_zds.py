import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import zds
from mesh.zds import Ack, Add, Connection, Del, Hello, Keep, Role, SnapshotSent, State

POD = Add("uid-1", "shop", "cart-0", "cart")


def live_pair() -> tuple[Connection, Connection]:
    agent, ztunnel = Connection(Role.AGENT), Connection(Role.ZTUNNEL)
    agent.receive(ztunnel.send(Hello()))
    ztunnel.receive(agent.send(SnapshotSent()))
    agent.receive(ztunnel.send(Ack()))
    return agent, ztunnel


@pytest.mark.parametrize(
    ("message", "packet"),
    [
        (Hello(), b"\x08\x01"),
        (Add("u", "ns", "n", "sa"), b"\x0a\x10\x0a\x01u\x12\x0b\x0a\x01n\x12\x02ns\x1a\x02sa"),
        (Del("u"), b"\x12\x03\x12\x01u"),
        (SnapshotSent(), b"\x1a\x00"),
        (Keep("u"), b"\x2a\x03\x0a\x01u"),
        (Ack(), b"\x0a\x00"),
        (Ack("no"), b"\x0a\x04\x0a\x02no"),
    ],
)
def test_packets_are_those_of_the_reference_byte_for_byte(message: zds.Message, packet: bytes) -> None:
    assert zds.encode(message) == packet


def test_a_whole_conversation_reads_the_same_on_both_sides() -> None:
    agent, ztunnel = Connection(Role.AGENT), Connection(Role.ZTUNNEL)
    assert agent.receive(ztunnel.send(Hello())) == Hello()
    requests: list[tuple[zds.Request, list[int]]] = [
        (POD, [7]),
        (Keep("uid-2"), []),
        (SnapshotSent(), []),
        (POD, [8]),
        (Del("uid-1"), []),
    ]
    for request, descriptors in requests:
        assert ztunnel.receive(agent.send(request), descriptors) == request
        assert agent.receive(ztunnel.send(Ack("why"))) == Ack("why")
    assert agent.is_live
    assert ztunnel.is_live


@pytest.mark.parametrize("message", [Keep("uid-1"), SnapshotSent()])
def test_keep_and_a_second_snapshot_end_are_faults_after_the_snapshot(message: zds.Request) -> None:
    agent, ztunnel = live_pair()
    with pytest.raises(zds.LocalProtocolError, match="state live"):
        agent.send(message)
    with pytest.raises(zds.RemoteProtocolError, match="state live"):
        ztunnel.receive(zds.encode(message))


def test_a_second_request_waits_for_the_answer_of_the_first() -> None:
    agent, ztunnel = live_pair()
    ztunnel.receive(agent.send(POD), [3])
    with pytest.raises(zds.LocalProtocolError, match="live_asked"):
        agent.send(Del("uid-1"))
    with pytest.raises(zds.RemoteProtocolError, match="live_asked"):
        ztunnel.receive(zds.encode(Del("uid-1")))


def test_an_answer_that_nobody_asked_for_is_a_fault() -> None:
    agent, _ = live_pair()
    with pytest.raises(zds.RemoteProtocolError, match="Ack came in state live"):
        agent.receive(zds.encode(Ack()))


@pytest.mark.parametrize(("request_", "count"), [(POD, 0), (POD, 2), (Del("uid-1"), 1)])
def test_add_carries_exactly_one_descriptor_and_nothing_else_any(request_: zds.Request, count: int) -> None:
    agent, ztunnel = live_pair()
    with pytest.raises(zds.RemoteProtocolError, match="descriptors"):
        ztunnel.receive(agent.send(request_), list(range(count)))
    assert ztunnel.state is State.LIVE


def test_each_side_sends_only_what_is_its_own() -> None:
    with pytest.raises(zds.LocalProtocolError):
        Connection(Role.AGENT).send(Hello())
    agent, ztunnel = live_pair()
    with pytest.raises(zds.LocalProtocolError):
        agent.send(Ack())
    with pytest.raises(zds.LocalProtocolError):
        ztunnel.send(Del("uid-1"))


@pytest.mark.parametrize("packet", [b"", b"\x08\x00", b"\x08\x02", b"\xff\xff", b"\x08"])
def test_a_hello_of_another_version_is_refused(packet: bytes) -> None:
    with pytest.raises(zds.RemoteProtocolError):
        Connection(Role.AGENT).receive(packet)


@pytest.mark.parametrize("packet", [b"", b"\x0a\x00", b"\x12\x00", b"\x2a\x00", b"\x22\x00", b"\x0a\x05ab"])
def test_requests_without_payload_or_uid_are_refused(packet: bytes) -> None:
    with pytest.raises(zds.RemoteProtocolError):
        zds.decode_request(packet)


def test_too_long_a_pod_is_refused_and_leaves_the_connection_usable() -> None:
    agent, _ = live_pair()
    with pytest.raises(zds.LocalProtocolError, match="1024"):
        agent.send(Add("u" * 1100, "ns", "n", "sa"))
    assert agent.state is State.LIVE


def test_a_long_error_is_cut_to_a_packet_between_characters() -> None:
    packet = zds.encode(Ack("é" * 2000))
    assert len(packet) <= zds.MAX_PACKET_BYTES
    assert set(zds.decode_ack(packet).error) == {"é"}


def test_kubernetes_longest_names_fit_a_packet() -> None:
    zds.encode(Add("0" * 36, "n" * 63, "p" * 253, "s" * 253))


@given(st.binary(max_size=1200), st.integers(0, 3))
def test_any_bytes_give_a_message_or_a_protocol_error(packet: bytes, descriptors: int) -> None:
    for side in (Connection(Role.AGENT), *live_pair()):
        with contextlib.suppress(zds.RemoteProtocolError):
            side.receive(packet, list(range(descriptors)))
