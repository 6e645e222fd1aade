"""Entries of maps as values, there and back."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf.layout import CEdgeStats, CFlow, CNote, Direction, Failure, FlowFlag, NoteKind, PodFlag
from bpf.records import EdgeKey, EdgeStats, Flow, Note, Pod, address_or_none

ADDRESSES = st.ip_addresses().filter(lambda address: address_or_none(bytes(16)) != address and int(address) != 0)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@given(
    st.builds(
        Note,
        kind=st.sampled_from(NoteKind),
        address=st.none() | ADDRESSES.filter(lambda a: a.version == 4 or a.ipv4_mapped is None),
        port=st.integers(0, 65535),
        netns=U64,
        direction=st.sampled_from(Direction),
        source=U32,
        destination=U32,
        cookie=U64,
    )
)
def test_note_comes_back(note: Note) -> None:
    assert Note.unpack(note.pack()) == note


def test_note_has_the_port_in_network_order() -> None:
    raw = CNote.from_buffer_copy(Note(NoteKind.CLIENT, ip_address("192.0.2.1"), 0x1F90).pack())
    assert bytes(raw)[48:50] == b"\x1f\x90"
    assert bytes(raw.orig) == bytes(10) + b"\xff\xff\xc0\x00\x02\x01"


def test_note_keeps_the_pods_own_address() -> None:
    note = Note(NoteKind.CAPTURED, ip_address("192.0.2.1"), 80, own=ip_address("10.0.0.1"))
    assert Note.unpack(note.pack()) == note


@pytest.mark.parametrize("ip4", [None, ip_address("10.0.0.1")])
@pytest.mark.parametrize("ip6", [None, ip_address("fd00::1")])
def test_pod_comes_back(ip4: object, ip6: object) -> None:
    pod = Pod(7, ip4, ip6, PodFlag.CAPTURE | PodFlag.INBOUND)  # type: ignore[arg-type]
    assert Pod.unpack(7, pod.pack()) == pod


@given(U32, U32, st.sampled_from(Direction))
def test_edge_key_comes_back(source: int, destination: int, direction: Direction) -> None:
    key = EdgeKey(source, destination, direction)
    assert EdgeKey.unpack(key.pack()) == key


def test_edge_figures_take_the_order_of_the_structure() -> None:
    raw = CEdgeStats(opened=1, closed=2, sent=7, received=8, retransmits=9, connect_us_sum=10, rtt_us_sum=11)
    raw.failed[:] = [3, 4, 5, 6]
    raw.connect_us[3], raw.rtt_us[23] = 12, 13
    words = list(memoryview(bytes(raw)).cast("Q"))
    stats = EdgeStats.of_words(words)
    assert (stats.opened, stats.closed, stats.sent, stats.received, stats.retransmits) == (1, 2, 7, 8, 9)
    assert stats.failed == {Failure.REFUSED: 3, Failure.TIMEOUT: 4, Failure.ABORTED: 5, Failure.DENIED: 6}
    assert (stats.connect_us_sum, stats.rtt_us_sum) == (10, 11)
    assert (stats.connect_us[3], stats.rtt_us[23]) == (12, 13)
    assert (len(stats.connect_us), len(stats.rtt_us)) == (24, 24)


def test_flow_is_read() -> None:
    raw = CFlow(sent=1, received=2, retransmits=3, opened=1, flags=5)
    assert Flow.unpack(bytes(raw)) == Flow(1, 2, 3, True, FlowFlag.ACTIVE | FlowFlag.FIN_RECEIVED)
