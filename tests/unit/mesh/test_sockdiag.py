import dataclasses
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.sockdiag import SockDiag, TcpSocket

OWN = Path("/proc/self/ns/net")
SO_COOKIE = 57

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1", "v4-mapped"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """A connection on loopback: (dialler, acceptor)."""
    mapped = request.param == "v4-mapped"
    family = socket.AF_INET if request.param == "127.0.0.1" else socket.AF_INET6
    address = "::ffff:127.0.0.1" if mapped else request.param
    with (
        socket.create_server(
            ("127.0.0.1", 0) if mapped else (address, 0), family=socket.AF_INET if mapped else family
        ) as listener,
        socket.socket(family) as dialler,
    ):
        dialler.connect((address, listener.getsockname()[1]))
        acceptor, _ = listener.accept()
        with acceptor:
            yield dialler, acceptor


def find(diag: SockDiag, end: socket.socket) -> TcpSocket:
    cookie = int.from_bytes(end.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    (found,) = [entry for entry in diag.established() if entry.cookie == cookie]
    return found


def test_a_connection_is_listed_with_its_tuple_and_cookie(ends: Ends) -> None:
    with SockDiag(OWN) as diag:
        found = find(diag, ends[0])
    assert (found.family, found.local_port) == (ends[0].family, ends[0].getsockname()[1])
    assert found.remote_port == ends[0].getpeername()[1]
    assert str(found.remote) == ends[0].getpeername()[0].removeprefix("::ffff:")
    assert found.is_loopback
    assert found.inode > 0


def test_destroy_ends_exactly_that_connection(ends: Ends) -> None:
    dialler, acceptor = ends
    with SockDiag(OWN) as diag:
        target = find(diag, dialler)
        assert not diag.destroy(dataclasses.replace(target, cookie=target.cookie + 1))
        dialler.send(b"still there")
        assert acceptor.recv(64) == b"still there"
        assert diag.destroy(target)
        with pytest.raises(ConnectionAbortedError):
            dialler.recv(1)
        with pytest.raises(ConnectionResetError):
            acceptor.recv(1)
        assert not diag.destroy(target)


def test_listeners_are_no_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, SockDiag(OWN) as diag:
        port = listener.getsockname()[1]
        assert not [entry for entry in diag.established() if entry.local_port == port]


def test_a_path_that_is_no_namespace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="setns"):
        SockDiag(tmp_path)
