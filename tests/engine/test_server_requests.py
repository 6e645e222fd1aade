"""What the engine answers on 15008: table 9.1 of the protocol, seen from python-hyper's h2."""

import h2.events
import h2.settings
import pytest

from mesh.reasons import Reason
from tests.engine.conftest import CLIENT_ID, SERVER_ID, ServerNode, server_tables
from tests.support.engine import Engine
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Credential, spiffe
from tests.support.sockets import HBONE, accept, listen, new_ip, port_of, read_exactly, read_to_end
from tests.support.tables import Tables


def test_connect_reaches_the_application_and_both_half_closes_pass(
    server: ServerNode, client_credential: Credential
) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    app = server.accept()
    event = peer.wait(h2.events.ResponseReceived, stream=stream)
    assert event.headers == [(":status", "200"), ("baggage", "k8s.namespace.name=default")]
    peer.send(stream, b"hello", end=True)
    assert read_to_end(app) == b"hello"
    app.sendall(b"world")
    assert peer.read(stream, 5) == b"world"
    app.close()
    peer.wait(h2.events.StreamEnded, stream=stream)
    closed = server.engine.wait_closed()
    assert (closed.reason, closed.sent, closed.received, closed.identity) == (Reason.OK, 5, 5, CLIENT_ID)
    assert closed.opened and closed.status == 200 and closed.direction == 2


def test_first_frames_are_the_settings_of_the_table(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    event = peer.wait(h2.events.RemoteSettingsChanged)
    codes = h2.settings.SettingCodes
    assert {code: change.new_value for code, change in event.changed_settings.items()} == {
        codes.MAX_CONCURRENT_STREAMS: 200,
        codes.INITIAL_WINDOW_SIZE: 4194304,
        codes.MAX_FRAME_SIZE: 1048576,
        codes.MAX_HEADER_LIST_SIZE: 65536,
    }
    update = peer.wait(h2.events.WindowUpdated)
    assert (update.stream_id, update.delta) == (0, 16711681)
    assert peer.socket.version() == "TLSv1.3"
    assert peer.socket.selected_alpn_protocol() == "h2"


def refusal(server: ServerNode, credentials: Credential, authority: str) -> tuple[int, int]:
    peer = server.dial(credentials)
    stream = peer.connect(authority)
    status = peer.status(stream)
    peer.wait(h2.events.StreamEnded, stream=stream)
    reset = peer.wait(h2.events.StreamReset, stream=stream)
    return status, int(reset.error_code)


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        ("10.9.8.7:80", 400, Reason.ADDRESS_MISMATCH),
        ("{ip}", 400, Reason.BAD_REQUEST),
        ("{ip}:", 400, Reason.BAD_REQUEST),
        ("{ip}:0", 400, Reason.BAD_REQUEST),
        ("{ip}:70000", 400, Reason.BAD_REQUEST),
        ("{ip}:+80", 400, Reason.BAD_REQUEST),
        ("", 400, Reason.BAD_REQUEST),
        ("[::1]:80", 400, Reason.ADDRESS_MISMATCH),
        ("[::ffff:{ip}]:{port}", 400, Reason.ADDRESS_MISMATCH),
        ("[{ip}]:{port}", 400, Reason.BAD_REQUEST),
        ("a" * 299 + ":80", 400, Reason.BAD_REQUEST),
        ("{ip}:15008", 503, Reason.SELF_CALL),
        ("{ip}:15006", 503, Reason.SELF_CALL),
        ("{ip}:15001", 503, Reason.SELF_CALL),
        ("server.default.svc.cluster.local:80", 503, Reason.UNKNOWN_PORT),
    ],
)
def test_a_refused_authority_gets_its_status_and_then_a_reset_without_error(
    server: ServerNode, client_credential: Credential, asked: str, status: int, reason: Reason
) -> None:
    authority = asked.format(ip=server.ip, port=server.port)
    assert refusal(server, client_credential, authority) == (status, 0)
    closed = server.engine.wait_closed()
    assert (closed.reason, closed.status, closed.opened) == (reason, status, False)
    assert server.engine.stats().refused[reason] == 1


def test_nobody_listens_is_503(server: ServerNode, client_credential: Credential) -> None:
    silent = listen(server.ip)
    port = port_of(silent)
    silent.close()
    assert refusal(server, client_credential, f"{server.ip}:{port}") == (503, 0)
    assert server.engine.wait_closed().reason == Reason.CONNECT_REFUSED


CONNECT = (":method", "CONNECT")


@pytest.mark.parametrize(
    "headers",
    [
        [CONNECT, (":authority", "foo bar")],
        [CONNECT, (":authority", "{a}"), (":scheme", "https"), (":path", "/")],
        [CONNECT, (":authority", "{a}"), (":protocol", "websocket")],
        [CONNECT, (":authority", "{a}"), (":authority", "{a}")],
        [(":authority", "{a}"), ("x", "y")],
        [CONNECT, ("x", "y"), (":authority", "{a}")],
        [CONNECT, (":authority", "{a}"), ("Upper", "case")],
        [CONNECT, (":authority", "{a}"), ("connection", "close")],
        [CONNECT, (":authority", "{a}"), (":status", "200")],
        [CONNECT, (":authority", "{a}"), (":unknown", "1")],
        [CONNECT, (":authority", "{a}"), ("x", "a\nb")],
    ],
)
def test_a_malformed_request_is_reset_and_the_tunnel_lives(
    server: ServerNode, client_credential: Credential, headers: list[tuple[str, str]]
) -> None:
    peer = server.dial(client_credential)
    stream = peer.request(*((name, value.format(a=server.authority)) for name, value in headers))
    assert int(peer.wait(h2.events.StreamReset, stream=stream).error_code) == 1
    assert server.engine.wait_closed().reason == Reason.PROTOCOL_ERROR
    again = peer.connect(server.authority)
    assert peer.status(again) == 200


@pytest.mark.parametrize("method", ["GET", "POST", "connect"])
def test_another_method_is_400(server: ServerNode, client_credential: Credential, method: str) -> None:
    peer = server.dial(client_credential)
    stream = peer.request(
        (":method", method), (":authority", server.authority), (":scheme", "https"), (":path", "/"), end=True
    )
    assert peer.status(stream) == 400


def test_headers_of_the_mesh_are_accepted_and_name_the_client(
    server: ServerNode, client_credential: Credential
) -> None:
    peer = server.dial(client_credential)
    ip = peer.socket.getsockname()[0]
    stream = peer.connect(
        server.authority,
        ("baggage", "k8s.namespace.name=x"),
        ("forwarded", f'for="{ip}:4321"'),
        ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-00"),
    )
    assert peer.status(stream) == 200
    opened = server.engine.connections()[0]
    assert opened.downstream == (ip, 4321)
    assert opened.hbone == peer.socket.getsockname()


@pytest.mark.parametrize(("identity", "number"), [(CLIENT_ID, 5), (spiffe("other"), 0)])
def test_the_source_is_the_workload_at_the_address_if_it_is_whom_the_peer_shows(
    server: ServerNode, client_credential: Credential, identity: str, number: int
) -> None:
    ip = new_ip()
    server.engine.publish(server_tables(server.ip).workload(5, "client", identity, ip))
    peer = Hyper.dial(server.ip, tls_context(False, client_credential), ip)
    server.peers.append(peer)
    assert peer.status(peer.connect(server.authority)) == 200
    opened = server.engine.connections()[0]
    assert (opened.source, opened.identity) == (number, CLIENT_ID)


@pytest.mark.parametrize("forwarded", ['for="10.0.0.1:4321"', "for=1.2.3.4", 'for="x', "for=", ";;;", 'For="[::1]:80"'])
def test_a_forwarded_header_that_speaks_of_another_address_changes_nothing(
    server: ServerNode, client_credential: Credential, forwarded: str
) -> None:
    peer = server.dial(client_credential)
    assert peer.status(peer.connect(server.authority, ("forwarded", forwarded))) == 200
    assert server.engine.connections()[0].downstream == peer.socket.getsockname()


def test_headers_beyond_the_limit_are_431(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority, *((f"x{i}", "v" * 8000) for i in range(9)))
    assert peer.status(stream) == 431


def test_an_unknown_workload_is_503_after_the_wait(server: ServerNode, client_credential: Credential) -> None:
    ip = new_ip()
    engine = server.engine
    assert not engine.add_pod(7, "nobody", "spiffe://cluster.local/ns/default/sa/server", hbone=listen(ip, 15008))
    node = ServerNode(engine, ip, server.app, server.credentials, server.peers)
    assert refusal(node, client_credential, f"{ip}:80")[0] == 503
    assert engine.wait_closed().reason == Reason.UNKNOWN_SOURCE


def test_a_pod_that_is_announced_on_another_node_lets_nobody_in(
    server: ServerNode, client_credential: Credential
) -> None:
    """Its policies are not known here."""
    server.engine.publish(Tables().workload(2, "server", SERVER_ID, server.ip, foreign=True))
    assert refusal(server, client_credential, server.authority) == (401, 0)
    assert server.engine.wait_closed().reason == Reason.POLICY_DENIED


def test_a_policy_that_is_not_in_the_tables_lets_nobody_in(server: ServerNode, client_credential: Credential) -> None:
    server.engine.publish(Tables().workload(2, "server", SERVER_ID, server.ip, policies=(77,)))
    assert refusal(server, client_credential, server.authority) == (401, 0)
    closed = server.engine.wait_closed()
    assert (closed.reason, closed.policy) == (Reason.POLICY_DENIED, 77)


def test_data_sent_before_the_answer_is_delivered(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    peer.send(stream, b"early", end=True)
    app = server.accept()
    assert read_to_end(app) == b"early"
    app.sendall(b"late")
    app.close()
    assert peer.read(stream, 4) == b"late"
    peer.wait(h2.events.StreamEnded, stream=stream)


def test_a_frame_of_one_mebibyte_is_accepted(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    stream = peer.connect(server.authority)
    assert peer.status(stream) == 200
    app = server.accept()
    peer.wait(h2.events.WindowUpdated)
    payload = bytes(range(256)) * 4096
    assert peer.h2.max_outbound_frame_size == len(payload)
    peer.h2.send_data(stream, payload)
    peer.flush()
    assert read_exactly(app, len(payload)) == payload


def test_what_follows_a_request_that_waits_does_not_change_it(
    server_credential: Credential, client_credential: Credential
) -> None:
    ip = new_ip()
    with Engine() as engine, listen(ip) as asked, listen(ip) as other:
        assert not engine.put_identity(SERVER_ID, server_credential)
        assert not engine.add_pod(1, "server", SERVER_ID, hbone=listen(ip, HBONE))
        with Hyper.dial(ip, tls_context(False, client_credential)) as peer:
            stream = peer.connect(f"{ip}:{port_of(asked)}")
            peer.h2.send_headers(stream, [(":authority", f"{ip}:{port_of(other)}")], end_stream=True)
            peer.ping()
            engine.publish(server_tables(ip))
            assert peer.status(stream) == 200
            with accept(asked) as app:
                assert app.recv(1) == b""
