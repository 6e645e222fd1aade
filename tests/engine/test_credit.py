"""Flow control of a tunnel as a whole: what applications leave unread costs credit, and reading gives it back."""

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest

from tests.engine.conftest import ServerNode
from tests.support.hyper import Hyper
from tests.support.pki import Credential

MIB = 1 << 20
WINDOW = 16 * MIB  # of a connection; a stream's is a quarter of it
STREAMS = 6


def send_what_goes(peer: Hyper, streams: list[int]) -> int:
    """Sends on all streams until nothing more may be sent and no more credit comes; how much that was."""
    sent = 0
    peer.socket.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            for stream in streams:
                while room := min(peer.h2.local_flow_control_window(stream), 65536):
                    peer.h2.send_data(stream, bytes(room))
                    sent += room
                peer.socket.settimeout(10)
                peer.flush()
                peer.socket.settimeout(0.5)
            peer.pump()
    peer.socket.settimeout(10)
    return sent


def count(app: socket.socket, into: list[int]) -> None:
    total = 0
    while part := app.recv(1 << 18):
        total += len(part)
    into.append(total)


@pytest.mark.slow
def test_unread_bytes_cost_the_tunnel_its_credit_and_reading_returns_all_of_it(
    make_node: Callable[..., ServerNode], client_credential: Credential
) -> None:
    node = make_node(tunnel_buffer_bytes=MIB)
    peer = node.dial(client_credential)
    streams = [peer.connect(node.authority) for _ in range(STREAMS)]
    apps = [node.accept() for _ in streams]
    for stream in streams:
        assert peer.status(stream) == 200
    sent = send_what_goes(peer, streams)
    # The bound, and the window that was open when it was met; six streams alone might have held 24 MiB.
    assert MIB < node.engine.stats().bytes_buffered <= MIB + WINDOW
    assert peer.h2.outbound_flow_control_window < WINDOW // 2
    read: list[int] = []
    readers = [threading.Thread(target=count, args=(app, read)) for app in apps]
    for reader in readers:
        reader.start()
    for stream in streams:
        peer.send(stream, bytes(5 * MIB), end=True)
    for reader in readers:
        reader.join()
    assert sum(read) == sent + STREAMS * 5 * MIB
