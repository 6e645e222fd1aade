"""Every way in which programs open TCP connections: MPTCP, Fast Open, non-blocking, io_uring."""

import errno
import select
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bpf.plane import NoteKind, Plane
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import PORT, accepted, as_client, family_of
from tests.bpf.topology import Place, Topology

MPTCP = 262
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_IS_MPTCP = 23, 30, 43


def mptcp_socket(place: Place, address: str) -> socket.socket:
    try:
        return place.socket(family_of(address), protocol=MPTCP)
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP: {error}")


@pytest.mark.parametrize(("address", "own"), [("10.77.2.1", "10.77.1.1"), ("fd77:2::1", "fd77:1::1")])
def test_mptcp_client_is_captured_and_its_names_are_right(
    net: Topology, plane: Plane, ztunnel: Ztunnel, address: str, own: str
) -> None:
    listener = ztunnel.outbound6 if ":" in address else ztunnel.outbound4
    with mptcp_socket(net.a, address) as app:
        app.connect((address, PORT))
        with accepted(listener) as sock:
            note = plane.note(sock)
            assert note is not None
            assert (note.kind, str(note.address), note.port) == (NoteKind.ACCEPTED, address, PORT)
            assert app.getpeername()[:2] == (address, PORT)
            assert app.getsockname()[0] == own
            app.sendall(b"over a fallback")
            assert sock.recv(64) == b"over a fallback"
    assert plane.in_flight() == 0


def test_mptcp_client_is_refused_while_ztunnel_is_away(net: Topology, plane: Plane, pod: Place) -> None:
    with mptcp_socket(pod, "10.77.2.1") as app, pytest.raises(ConnectionRefusedError):
        app.connect(("10.77.2.1", PORT))
    assert plane.in_flight() == 0


def test_reused_mptcp_socket_never_shows_an_older_note(net: Topology, plane: Plane, pod: Place) -> None:
    with mptcp_socket(pod, "10.77.2.1") as app, pod.listen("127.0.0.1", PORT, protocol=MPTCP):
        app.settimeout(None)
        with pytest.raises(ConnectionRefusedError):
            app.connect(("10.77.2.1", PORT))
        app.connect(("127.0.0.1", PORT))
        assert app.getpeername() == ("127.0.0.1", PORT)


def test_mptcp_server_sees_the_true_client(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """Go's listeners are MPTCP; ztunnel dials them with plain TCP."""
    with mptcp_socket(net.a, "10.77.1.1") as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("10.77.1.1", PORT))
        server.listen(8)
        with as_client(plane, net.a, "10.77.1.1", net.out.address4, 4242):
            sock, name = server.accept()
            with sock:
                assert name == ("10.77.9.1", 4242)
                assert sock.getpeername() == ("10.77.9.1", 4242)


def test_mptcp_client_from_outside_reaches_the_plain_listener(net: Topology, ztunnel: Ztunnel) -> None:
    with mptcp_socket(net.out, "10.77.1.1") as client:
        client.connect(("10.77.1.1", PORT))
        with accepted(ztunnel.inbound) as sock:
            assert sock.getsockname()[1] == PORT


def test_mptcp_listener_cannot_take_a_slot(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with net.a.listen("10.77.1.1", 7400, protocol=MPTCP) as listener, pytest.raises(OSError, match="map update"):
        plane.put_listener(net.a.cookie, 15006, listener)


@pytest.fixture
def fast_open(net: Topology, ztunnel: Ztunnel) -> Iterator[None]:
    net.a.command("sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
    ztunnel.outbound4.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
    yield
    net.a.command("sysctl", "-qw", "net.ipv4.tcp_fastopen=1")


@pytest.mark.parametrize("how", ["sendto", "connect option"])
def test_fast_open_carries_note_and_data(
    net: Topology, plane: Plane, ztunnel: Ztunnel, fast_open: None, how: str
) -> None:
    """The second connection has a cookie: its data travels in the SYN."""
    for _ in range(2):
        with net.a.socket() as app:
            app.settimeout(None)
            if how == "sendto":
                assert app.sendto(b"early", MSG_FASTOPEN, ("10.77.2.1", PORT)) == 5
            else:
                app.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
                app.connect(("10.77.2.1", PORT))
                app.sendall(b"early")
            with accepted(ztunnel.outbound4) as sock:
                note = plane.note(sock)
                assert note is not None
                assert (note.kind, str(note.address), note.port) == (NoteKind.ACCEPTED, "10.77.2.1", PORT)
                assert sock.recv(64) == b"early"
                assert app.getpeername() == ("10.77.2.1", PORT)
    assert plane.in_flight() == 0


def test_non_blocking_connect(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with net.a.socket() as app:
        app.setblocking(False)
        assert app.connect_ex(("10.77.2.1", PORT)) in (0, errno.EINPROGRESS)
        with accepted(ztunnel.outbound4) as sock:
            assert select.select([], [app], [], 3)[1] == [app]
            assert app.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert app.getpeername() == ("10.77.2.1", PORT)
            assert plane.note(sock) is not None


def test_non_blocking_connect_hears_of_the_refusal(net: Topology, plane: Plane, pod: Place) -> None:
    with pod.socket() as app:
        app.setblocking(False)
        assert app.connect_ex(("10.77.2.1", PORT)) in (errno.ECONNREFUSED, errno.EINPROGRESS)
        assert select.select([], [app], [], 3)[1] == [app]
    assert plane.in_flight() == 0


@pytest.fixture(scope="session")
def uring(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The helper; skips when the kernel has no io_uring."""
    program = tmp_path_factory.mktemp("uring") / "uring_connect"
    source = Path(__file__).with_name("uring_connect.c")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", str(program), str(source)], check=True, timeout=60)
    probe = subprocess.run([str(program), "127.0.0.1", "9"], capture_output=True, text=True, timeout=10, check=False)
    if "io_uring_setup" in probe.stderr:
        pytest.skip(f"this kernel has no io_uring: {probe.stderr.strip()}")
    return str(program)


@pytest.mark.parametrize("mode", [(), ("sqpoll",)], ids=["submitted", "polled by the kernel"])
def test_io_uring_connect(net: Topology, plane: Plane, ztunnel: Ztunnel, uring: str, mode: tuple[str, ...]) -> None:
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(net.a.command, uring, "10.77.2.1", str(PORT), *mode)
        with accepted(ztunnel.outbound4) as sock:
            note = plane.note(sock)
            assert note is not None
            assert (str(note.address), note.port) == ("10.77.2.1", PORT)
        assert done.result(10).stdout.strip() == f"10.77.2.1:{PORT}", done.result().stderr


def test_io_uring_connect_is_refused_without_ztunnel(net: Topology, plane: Plane, pod: Place, uring: str) -> None:
    assert net.a.command(uring, "10.77.2.1", str(PORT)).stdout.strip() == "Connection refused"
    assert plane.in_flight() == 0
