"""Table 9.1 of the protocol reference: what our 15008 answers, seen by python-hyper's h2. Each test names its row."""

import socket

import h2.events
import pytest
from h2.settings import SettingCodes

from mesh.reasons import Reason
from tests.interop.conftest import OurServer
from tests.support.hyper import CONNECT, Hyper
from tests.support.sockets import accept, listen, new_ip, port_of, read_exactly, read_to_end

NO_ERROR, PROTOCOL_ERROR = 0, 1


def test_row_first_frames(server: OurServer) -> None:
    peer = server.peer()
    changed = peer.wait(h2.events.RemoteSettingsChanged).changed_settings
    assert {code: setting.new_value for code, setting in changed.items()} == {
        SettingCodes.MAX_CONCURRENT_STREAMS: 200,
        SettingCodes.INITIAL_WINDOW_SIZE: 4194304,
        SettingCodes.MAX_FRAME_SIZE: 1048576,
        SettingCodes.MAX_HEADER_LIST_SIZE: 65536,
    }
    update = peer.wait(h2.events.WindowUpdated)
    assert (update.stream_id, update.delta) == (0, 16711681)


def test_row_connect_with_listener_up(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        headers = peer.wait(h2.events.ResponseReceived, stream).headers
        assert headers[0] == (":status", "200")
        assert [name for name, _ in headers] == [":status", "baggage"]
        assert "k8s.namespace.name=default" in headers[1][1].split(",")
        peer.send(stream, b"to the application", end=True)
        assert read_to_end(app) == b"to the application"
        app.sendall(b"after their end")
        assert peer.read(stream, 15) == b"after their end"
    peer.ended(stream)
    reason, event = server.node.closed()
    assert (reason, event.bytes_sent, event.bytes_received) == (Reason.OK, 18, 15)


def test_row_connect_half_close_from_the_application_first(server: OurServer) -> None:
    peer = server.peer()
    stream = peer.connect(server.authority)
    with accept(server.app) as app:
        app.sendall(b"greeting")
        app.shutdown(1)
        peer.ended(stream)
        assert peer.read(stream, 8) == b"greeting"
        peer.send(stream, b"x" * 100_000, end=True)
        assert read_to_end(app) == b"x" * 100_000
    assert server.node.closed()[0] is Reason.OK


@pytest.mark.parametrize(
    ("row", "asked", "status"),
    [
        ("another pod's IP", "{other}:8080", 400),
        ("unknown IP", "203.0.113.7:80", 400),
        ("authority without port", "{ip}", 400),
        ("IPv4-mapped", "[::ffff:{ip}]:{port}", 400),
        ("nothing listens", "{ip}:{closed}", 503),
        ("podIP:15008", "{ip}:15008", 503),
        ("podIP:15006", "{ip}:15006", 503),
        ("hostname", "server.default.svc.cluster.local:80", 503),
    ],
)
def test_row_refused_with_status_end_and_reset_without_error(
    server: OurServer, row: str, asked: str, status: int
) -> None:
    other = new_ip()
    server.node.workload("other", other)
    with listen(server.ip) as closing:
        closed = port_of(closing)
    peer = server.peer()
    stream = peer.connect(asked.format(ip=server.ip, port=port_of(server.app), other=other, closed=closed))
    assert peer.status(stream) == status, row
    peer.ended(stream)
    assert peer.reset_code(stream) == NO_ERROR
    with accept_again(server, peer):
        pass


def accept_again(server: OurServer, peer: Hyper) -> socket.socket:
    """The tunnel still serves: a good request on it reaches the application."""
    stream = peer.connect(server.authority)
    app = accept(server.app)
    assert peer.status(stream) == 200
    return app


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ("authority foo bar", [CONNECT, (":authority", "foo bar")]),
        ("CONNECT with :scheme and :path", [CONNECT, (":authority", "{a}"), (":scheme", "https"), (":path", "/")]),
        ("extended CONNECT", [CONNECT, (":protocol", "websocket"), (":authority", "{a}")]),
        (
            "extended CONNECT, all pseudo-headers",
            [CONNECT, (":protocol", "connect-udp"), (":scheme", "https"), (":path", "/"), (":authority", "{a}")],
        ),
    ],
)
def test_row_malformed_is_reset_with_protocol_error(
    server: OurServer, row: str, headers: list[tuple[str, str]]
) -> None:
    peer = server.peer()
    stream = peer.request(*((name, value.format(a=server.authority)) for name, value in headers))
    assert peer.reset_code(stream) == PROTOCOL_ERROR, row
    with accept_again(server, peer):
        pass


def test_row_get_is_400(server: OurServer) -> None:
    peer = server.peer()
    get = [(":method", "GET"), (":scheme", "https"), (":authority", server.authority), (":path", "/")]
    stream = peer.request(*get, end=True)
    assert peer.status(stream) == 400
    peer.ended(stream)


def test_row_headers_of_the_mesh_are_accepted(server: OurServer) -> None:
    peer = server.peer()
    own_ip, _ = peer.socket.getsockname()
    stream = peer.connect(
        server.authority,
        ("baggage", "k8s.cluster.name=c1,k8s.namespace.name=default,service.name=client"),
        ("forwarded", f'for="{own_ip}:43210"'),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
    )
    with accept(server.app) as app:
        assert peer.status(stream) == 200
        peer.send(stream, b"ping")
        assert read_exactly(app, 4) == b"ping"


def test_refusal_by_policy_is_401_and_names_the_policy(server: OurServer) -> None:
    server.node.allow_only("somebody-else")
    peer = server.peer()
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 401
    peer.ended(stream)
    assert peer.reset_code(stream) == NO_ERROR
    assert server.node.closed()[0] is Reason.POLICY_DENIED
    assert "policy=default/only-somebody-else" in server.node.log()


def test_200_comes_only_after_the_application_has_accepted(server: OurServer) -> None:
    with listen(server.ip, backlog=0) as full:
        ip, port = full.getsockname()
        peer = server.peer()
        streams = [peer.connect(f"{ip}:{port}") for _ in range(4)]
        answers = sorted(peer.status(stream) for stream in streams)
    # The kernel takes one more than the backlog by itself; those it does not take time out and are 503.
    assert answers[0] == 200 and answers[-1] == 503
