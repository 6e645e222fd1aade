"""What applications are told about both ends of a connection."""

import socket
import sys
from ipaddress import ip_address

import pytest

from bpf.plane import NoteKind, Plane, PodFlag
from tests.bpf.conftest import Ztunnel
from tests.bpf.dialling import PORT, accepted, as_client, dial
from tests.bpf.topology import Place, Topology

CLIENT4, CLIENT6 = ip_address("192.0.2.33"), ip_address("2001:db8::33")


@pytest.mark.parametrize(
    ("family", "address", "peer", "own"),
    [
        pytest.param(socket.AF_INET, "10.77.2.1", "10.77.2.1", "10.77.1.1", id="v4"),
        pytest.param(socket.AF_INET6, "fd77:2::1", "fd77:2::1", "fd77:1::1", id="v6"),
        pytest.param(socket.AF_INET6, "::ffff:10.77.2.1", "::ffff:10.77.2.1", "::ffff:10.77.1.1", id="v4-mapped"),
    ],
)
def test_dialling_app_sees_what_it_dialled_and_its_pod(
    net: Topology, ztunnel: Ztunnel, family: int, address: str, peer: str, own: str
) -> None:
    listener = ztunnel.outbound6 if own == "fd77:1::1" else ztunnel.outbound4
    with dial(net.a, address, family=family) as app, accepted(listener) as sock:
        assert app.getpeername()[:2] == (peer, PORT)
        assert app.getsockname()[0] == own
        assert app.getsockname()[1] == sock.getpeername()[1]


@pytest.mark.parametrize(
    ("address", "own"),
    [pytest.param("10.77.2.1", "10.77.1.1", id="v4"), pytest.param("fd77:2::1", "fd77:1::1", id="v6")],
)
def test_names_stay_when_the_pod_has_left_the_mesh(
    net: Topology, plane: Plane, pod: Place, address: str, own: str
) -> None:
    """Its open connections live on."""
    ztunnel = Ztunnel(plane, pod)
    try:
        listener = ztunnel.outbound6 if ":" in address else ztunnel.outbound4
        with dial(pod, address) as app, accepted(listener):
            plane.unenrol(pod.cookie)
            assert app.getsockname()[0] == own
            assert app.getpeername()[:2] == (address, PORT)
    finally:
        ztunnel.close()


def test_ztunnel_sees_the_kernels_names(net: Topology, ztunnel: Ztunnel) -> None:
    with dial(net.a, "10.77.2.1"), accepted(ztunnel.outbound4) as sock:
        assert sock.getpeername()[0].startswith("127.")
        assert sock.getsockname()[1] == 15001


@pytest.mark.parametrize(
    ("listen_on", "address", "client", "shown"),
    [
        pytest.param("10.77.1.1", "10.77.1.1", CLIENT4, "192.0.2.33", id="v4"),
        pytest.param("fd77:1::1", "fd77:1::1", CLIENT6, "2001:db8::33", id="v6"),
        pytest.param("::", "10.77.1.1", CLIENT4, "::ffff:192.0.2.33", id="v4-on-dual-stack"),
        pytest.param("::", "fd77:1::1", CLIENT4, "::ffff:192.0.2.33", id="v4-client-over-v6"),
        pytest.param("127.0.0.1", "127.0.0.1", CLIENT4, "192.0.2.33", id="loopback-only-app"),
    ],
)
def test_serving_app_sees_the_true_client(
    net: Topology, plane: Plane, ztunnel: Ztunnel, listen_on: str, address: str, client: object, shown: str
) -> None:
    truth = ip_address(str(client))
    with net.a.listen(listen_on, PORT) as server, as_client(plane, net.a, address, truth, 4242):
        server.settimeout(3)
        sock, name = server.accept()
        with sock:
            assert name[:2] == (shown, 4242)
            assert sock.getpeername()[:2] == (shown, 4242)
            note = plane.note(sock)
            assert note is not None
            assert note.kind is NoteKind.SERVED
    assert plane.in_flight() == 0


def test_v6_client_does_not_fit_a_v4_application(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    """There is no way to show it: the kernel's own name stays."""
    with (
        net.a.listen("10.77.1.1", PORT) as server,
        as_client(plane, net.a, "10.77.1.1", CLIENT6, 4242),
        accepted(server) as sock,
    ):
        assert sock.getpeername()[0] == "10.77.1.1"


def test_names_hold_on_open_connections_while_the_pod_drains(net: Topology, plane: Plane, ztunnel: Ztunnel) -> None:
    with dial(net.a, "10.77.2.1") as app, accepted(ztunnel.outbound4):
        plane.set_flags(net.a.cookie, PodFlag(0))
        assert app.getpeername() == ("10.77.2.1", PORT)
        assert app.getsockname()[0] == "10.77.1.1"


def test_app_that_bound_its_own_address_keeps_its_name(net: Topology, ztunnel: Ztunnel) -> None:
    with net.a.socket() as app:
        app.bind(("10.77.1.1", 0))
        app.connect(("10.77.2.1", PORT))
        assert app.getsockname()[0] == "10.77.1.1"


def test_listener_made_of_a_once_captured_socket_shows_where_it_listens(net: Topology, pod: Place) -> None:
    with pod.socket() as sock:
        sock.settimeout(None)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("10.77.2.1", PORT))
        sock.bind(("127.0.0.1", 7300))
        sock.listen(1)
        assert sock.getsockname() == ("127.0.0.1", 7300)


FORKED = """
import os, socket, sys
sock = socket.create_connection(("10.77.2.1", 7000), timeout=3)
if os.fork() == 0:
    os.set_inheritable(sock.fileno(), True)
    code = ("import socket,sys; s=socket.socket(fileno=int(sys.argv[1]));"
            "print(s.getpeername(), s.getsockname()[0], flush=True)")
    os.execv(sys.executable, [sys.executable, "-c", code, str(sock.fileno())])
os.wait()
"""


def test_names_follow_the_socket_through_fork_and_exec(net: Topology, ztunnel: Ztunnel) -> None:
    done = net.a.command(sys.executable, "-c", FORKED)
    assert done.stdout.strip() == "('10.77.2.1', 7000) 10.77.1.1", done.stderr
