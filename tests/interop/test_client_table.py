"""Table 9.2 of the protocol reference: what our outbound sends to a peer's 15008, seen by python-hyper's h2."""

import re
import socket
import ssl
import time

import h2.events
import pytest
from cryptography import x509
from h2.settings import SettingCodes

from mesh.reasons import Reason
from tests.interop.conftest import OurClient
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import spiffe
from tests.support.sockets import connect, is_reset, read_exactly, read_to_end

CANCEL = 8


def test_row_first_frames(client: OurClient) -> None:
    client.app()
    peer = client.accept()
    changed = peer.wait(h2.events.RemoteSettingsChanged).changed_settings
    assert {code: setting.new_value for code, setting in changed.items()} == {
        SettingCodes.ENABLE_PUSH: 0,
        SettingCodes.INITIAL_WINDOW_SIZE: 4194304,
        SettingCodes.MAX_FRAME_SIZE: 1048576,
        SettingCodes.MAX_HEADER_LIST_SIZE: 16384,
    }
    update = peer.wait(h2.events.WindowUpdated)
    assert (update.stream_id, update.delta) == (0, 16711681)


def test_row_request_headers_in_order(client: OurClient) -> None:
    app = client.app()
    peer = client.accept()
    stream, headers = peer.accept_request()
    assert [name for name, _ in headers] == [":method", ":authority", "baggage", "forwarded", "traceparent"]
    values = dict(headers)
    assert values[":method"] == "CONNECT"
    assert values[":authority"] == client.authority
    assert "k8s.namespace.name=default" in values["baggage"].split(",")
    assert values["forwarded"] == f'for="{client.ip}:{app.getsockname()[1]}"'
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", values["traceparent"])
    assert stream == 1


def test_row_traceparent_is_new_for_each_connection(client: OurClient) -> None:
    client.app()
    peer = client.accept()
    _, first = peer.accept_request()
    client.app()
    _, second = peer.accept_request()
    assert dict(first)["traceparent"] != dict(second)["traceparent"]


def test_row_streams_1_3_5_on_one_connection_reused(client: OurClient) -> None:
    app, peer, stream = client.opened()
    streams = [stream]
    for _ in range(3):
        app.sendall(b"ping")
        assert peer.read(stream, 4) == b"ping"
        app.shutdown(socket.SHUT_WR)
        peer.ended(stream)
        peer.end(stream)
        assert read_to_end(app) == b""
        app, stream = client.next_stream(peer)
        streams.append(stream)
    assert streams == [1, 3, 5, 7]
    assert client.node.stats().tunnels_opened[0] == 1


def test_half_close_passes_both_ways(client: OurClient) -> None:
    app, peer, stream = client.opened()
    app.sendall(b"request")
    app.shutdown(socket.SHUT_WR)
    peer.ended(stream)
    assert peer.read(stream, 7) == b"request"
    peer.send(stream, b"answer", end=True)
    assert read_to_end(app) == b"answer"
    reason, event = client.node.closed()
    assert (reason, event.bytes_sent, event.bytes_received) == (Reason.OK, 7, 6)


def test_half_close_from_the_far_side_first(client: OurClient) -> None:
    app, peer, stream = client.opened()
    peer.send(stream, b"greeting", end=True)
    assert read_to_end(app) == b"greeting"
    app.sendall(b"x" * 50_000)
    app.shutdown(socket.SHUT_WR)
    peer.ended(stream)
    assert peer.read(stream, 50_000) == b"x" * 50_000
    assert client.node.closed()[0] is Reason.OK


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Reason.PEER_DENIED),
        (503, Reason.PEER_UNAVAILABLE),
        (400, Reason.PEER_REJECTED),
        (204, Reason.PEER_REJECTED),
        (302, Reason.PEER_REJECTED),
    ],
)
@pytest.mark.parametrize("end", [False, True], ids=("open", "ended"))
def test_row_another_status_is_cancel_for_them_and_a_reset_for_the_application(
    client: OurClient, status: int, reason: Reason, end: bool
) -> None:
    app = client.app()
    peer = client.accept()
    stream, _ = peer.accept_request()
    peer.answer(stream, status, end=end)
    assert is_reset(app)
    assert peer.reset_code(stream) == CANCEL
    found, event = client.node.closed()
    assert (found, event.status) == (reason, status)
    assert f"http status {status}" in client.node.log()


def test_row_access_log_fields(client: OurClient) -> None:
    app, peer, stream = client.opened()
    port = app.getsockname()[1]
    app.sendall(b"12345")
    app.shutdown(socket.SHUT_WR)
    peer.ended(stream)
    peer.send(stream, b"1234567", end=True)
    read_to_end(app)
    client.node.closed()
    line = client.node.log()
    for pair in (
        f"src.addr={client.ip}:{port}",
        "src.workload=client",
        "src.namespace=default",
        f"src.identity={spiffe('client')}",
        f"dst.addr={client.peer_ip}:15008",
        f"dst.hbone_addr={client.authority}",
        "dst.workload=server",
        "dst.namespace=default",
        f"dst.identity={spiffe('server')}",
        "direction=outbound",
        "bytes_sent=5",
        "bytes_recv=7",
    ):
        assert f" {pair} " in line.replace("\t", " "), line
    assert re.search(r" duration=\d+ms", line)


def test_tls_1_3_h2_no_sni_and_the_pods_own_identity(client: OurClient) -> None:
    asked: list[str | None] = []
    context = tls_context(True, client.shown)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    client.app()
    with Hyper.accept(client.listener, context) as peer:
        peer.accept_request()
        assert peer.socket.version() == "TLSv1.3"
        assert peer.socket.selected_alpn_protocol() == "h2"
        shown = x509.load_der_x509_certificate(peer.socket.getpeercert(binary_form=True) or b"")
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe("client")]
    assert asked in ([], [None])


def test_a_later_connection_on_a_warm_tunnel_takes_milliseconds(client: OurClient) -> None:
    _, peer, _ = client.opened()
    begun = time.monotonic()
    app, stream = client.next_stream(peer)
    peer.send(stream, b"x")
    assert read_exactly(app, 1) == b"x"
    assert time.monotonic() - begun < 0.25


def test_a_server_that_speaks_no_h2_is_refused(client: OurClient) -> None:
    for alpn in ((), ("http/1.1",)):
        app = client.app()
        plain, _ = client.listener.accept()
        plain.settimeout(5)
        with (
            plain,
            pytest.raises(OSError),
            tls_context(True, client.shown, alpn=alpn).wrap_socket(plain, server_side=True) as peer,
        ):
            while peer.recv(65536):
                pass
            raise ConnectionResetError("closed without a request")
        assert is_reset(app)
        assert client.node.closed()[0] is Reason.TLS_FAILED


def test_a_server_of_tls_1_2_is_refused(client: OurClient) -> None:
    only = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    app = connect((client.peer_ip, client.captured))
    with app, pytest.raises(ssl.SSLError):
        Hyper.accept(client.listener, tls_context(True, client.shown, versions=only))
    assert client.node.closed()[0] is Reason.TLS_FAILED
