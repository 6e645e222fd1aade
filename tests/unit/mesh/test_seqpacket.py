import asyncio
import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import netns, seqpacket
from mesh.seqpacket import PacketCut, PacketSocket

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


OWN_NETNS = Path("/proc/self/ns/net")


def open_descriptors() -> set[str]:
    gc.collect()  # what an earlier test left to the collector must not close in between
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_a_namespace_arrives_as_a_close_on_exec_descriptor(pair: Pair) -> None:
    with OWN_NETNS.open() as own:
        seqpacket.send(pair[0], b"add", [own.fileno()])
        packet = seqpacket.receive(pair[1], 64)
        assert packet is not None
        (fd,) = packet.descriptors
        assert packet.data == b"add"
        assert netns.is_network_namespace(fd)
        assert not os.get_inheritable(fd)
        assert os.fstat(fd).st_ino == os.fstat(own.fileno()).st_ino
        packet.close()


def test_a_file_is_no_network_namespace(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert not netns.is_network_namespace(fd)
    finally:
        os.close(fd)


def test_packets_keep_their_borders_and_the_end_is_none(pair: Pair) -> None:
    seqpacket.send(pair[0], b"one")
    seqpacket.send(pair[0], b"two")
    pair[0].close()
    received = [seqpacket.receive(pair[1], 64) for _ in range(3)]
    assert [packet and packet.data for packet in received] == [b"one", b"two", None]


@pytest.mark.parametrize(("size", "count", "match"), [(65, 1, "longer than 64"), (4, 9, "descriptors")])
def test_what_does_not_fit_is_a_fault_and_leaks_nothing(pair: Pair, size: int, count: int, match: str) -> None:
    with OWN_NETNS.open() as own:
        before = open_descriptors()
        seqpacket.send(pair[0], b"x" * size, [own.fileno()] * count)
        with pytest.raises(PacketCut, match=match):
            seqpacket.receive(pair[1], 64)
        assert open_descriptors() == before


def test_receive_waits_and_send_waits_for_room(pair: Pair) -> None:
    async def exchange() -> int:
        left, right = PacketSocket(pair[0], 1024), PacketSocket(pair[1], 1024)

        async def write() -> None:
            for _ in range(2000):
                await left.send(b"x" * 1000)
            left.close()

        async def read() -> int:
            count = 0
            while (packet := await right.receive()) is not None:
                assert len(packet.data) == 1000
                count += 1
            return count

        counted, _ = await asyncio.gather(read(), write())
        right.close()
        return counted

    assert asyncio.run(exchange()) == 2000


def test_closing_wakes_who_waits(pair: Pair) -> None:
    async def wait() -> None:
        packets = PacketSocket(pair[0], 64)
        asyncio.get_running_loop().call_soon(packets.close)
        with pytest.raises(ConnectionAbortedError):
            await packets.receive()
        packets.close()

    asyncio.run(wait())


def test_a_dead_peer_is_an_error_not_a_signal(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(BrokenPipeError):
        seqpacket.send(pair[0], b"x")
