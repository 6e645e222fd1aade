"""Whom the engine lets in on 15008: the TLS rows of table 9.1."""

import datetime as dt
import socket
import ssl
import struct
from functools import partial

import h2.events
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.reasons import Reason
from tests.engine.conftest import CLIENT_ID, SERVER_ID, ServerNode, close_server, make_server
from tests.support.alerts import note_alerts
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import HBONE, connect, listen, new_ip, until


def alert(server: ServerNode, context: ssl.SSLContext) -> str:
    """The alert that ends the attempt."""
    received = note_alerts(context)
    with (
        pytest.raises(ssl.SSLError),
        connect((server.ip, HBONE)) as plain,
        context.wrap_socket(plain) as made,
    ):
        # TLS 1.3: the client is done before the server has looked at its certificate
        made.recv(1 << 16)
        made.recv(1 << 16)
    (only,) = received
    return only


def test_no_certificate(server: ServerNode) -> None:
    assert alert(server, tls_context(False, None)) == "certificate_required"
    assert server.engine.wait_closed().reason == Reason.TLS_FAILED
    assert server.engine.stats().handshakes_failed[1] == 1


@pytest.mark.parametrize(
    "uris",
    [
        [spiffe("client", domain="other.local")],
        [spiffe("client", domain="cluster.local.evil")],
        [spiffe("client", domain="cluster.loca")],
        [spiffe("client", domain="cluster.lokal")],
        [spiffe("client", domain="other.local"), CLIENT_ID],
        ["https://cluster.local/ns/default/sa/client"],
        ["spiffe://cluster.local/ns/default/sa/client/more"],
        ["spiffe://cluster.local/ns//sa/client"],
        ["spiffe://cluster.local/sa/client"],
        [],
    ],
)
def test_another_trust_domain_or_no_spiffe_id(server: ServerNode, authority: Authority, uris: list[str]) -> None:
    assert alert(server, tls_context(False, authority.issue(*uris))) == "certificate_unknown"
    assert server.engine.wait_closed().reason == Reason.TLS_UNTRUSTED


def test_the_first_spiffe_id_is_the_identity(server: ServerNode, authority: Authority) -> None:
    peer = server.dial(authority.issue("https://example.com/", CLIENT_ID, spiffe("second")))
    assert peer.status(peer.connect(server.authority)) == 200
    assert server.engine.connections()[0].identity == CLIENT_ID


def test_expired(server: ServerNode, authority: Authority) -> None:
    old = authority.issue(CLIENT_ID, not_after=authority.now - dt.timedelta(minutes=5))
    assert alert(server, tls_context(False, old)) == "certificate_expired"
    assert "expired" in server.engine.wait_closed().detail


@pytest.mark.parametrize("name", ["test root", "another authority"])
def test_signed_by_another_key(server: ServerNode, authority: Authority, name: str) -> None:
    foreign = Authority(name).issue(CLIENT_ID, trusts=authority)
    assert alert(server, tls_context(False, foreign)) == "decrypt_error"
    assert server.engine.wait_closed().reason == Reason.TLS_UNTRUSTED


def test_a_certificate_for_servers_only(server: ServerNode, authority: Authority) -> None:
    made = authority.issue(CLIENT_ID, usages=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert alert(server, tls_context(False, made))
    assert server.engine.wait_closed().reason == Reason.TLS_UNTRUSTED


def test_tls_1_2(server: ServerNode, client_credential: Credential) -> None:
    context = tls_context(False, client_credential)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert alert(server, context) == "protocol_version"


def test_alpn_without_h2(server: ServerNode, client_credential: Credential) -> None:
    context = tls_context(False, client_credential, alpn=("http/1.1",))
    assert alert(server, context) == "no_application_protocol"


def test_no_alpn_is_accepted(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential, alpn=())
    assert peer.socket.selected_alpn_protocol() is None
    assert peer.status(peer.connect(server.authority)) == 200


def test_no_session_ticket_is_given(server: ServerNode, client_credential: Credential) -> None:
    peer = server.dial(client_credential)
    assert peer.status(peer.connect(server.authority)) == 200
    assert not peer.socket.session.has_ticket


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\0" * 300,
        b"\0" * 100,
        bytes(range(256)) * 512,
    ],
)
def test_garbage_is_closed_and_counted(server: ServerNode, garbage: bytes) -> None:
    with connect((server.ip, HBONE)) as made:
        try:
            made.sendall(garbage)
            while made.recv(1000):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
    closed = server.engine.wait_closed()
    assert (closed.reason, closed.downstream[0]) == (Reason.TLS_FAILED, "127.0.0.1")
    until(lambda: server.engine.stats().handshakes_failed[1] == 1)


def test_a_client_that_says_nothing_is_closed_at_the_deadline(
    server_credential: Credential,
) -> None:
    node = make_server(server_credential, handshake_timeout_ms=100)
    with connect((node.ip, HBONE)) as made:
        assert made.recv(1) == b""
    assert node.engine.wait_closed().reason == Reason.HANDSHAKE_TIMEOUT
    close_server(node)


def has_accepted(node: ServerNode, count: int) -> bool:
    return bool(node.engine.stats().accepted == count)


def test_of_too_many_handshakes_the_oldest_gives_way(
    server_credential: Credential, client_credential: Credential
) -> None:
    node = make_server(server_credential, max_handshakes=3)
    silent = []
    for count in range(1, 4):
        silent.append(connect((node.ip, HBONE)))
        until(partial(has_accepted, node, count))
    peer = node.dial(client_credential)
    assert peer.status(peer.connect(node.authority)) == 200
    assert node.engine.wait_closed().reason == Reason.LIMIT_HANDSHAKES
    assert silent[0].recv(1) == b"", "the oldest"
    for made in silent[1:]:
        made.settimeout(0.05)
        with pytest.raises(TimeoutError):
            made.recv(1)
    for made in silent:
        made.close()
    close_server(node)


def test_silent_peers_of_one_pod_cost_no_other_pod_its_handshakes(
    server_credential: Credential, client_credential: Credential
) -> None:
    node = make_server(server_credential, max_handshakes=4)
    ip = new_ip()
    assert not node.engine.add_pod(9, "server", SERVER_ID, hbone=listen(ip, HBONE))
    with connect((ip, HBONE)) as quiet:
        until(lambda: node.engine.stats().accepted == 1)
        silent = [connect((node.ip, HBONE)) for _ in range(12)]
        until(lambda: node.engine.stats().refused[Reason.LIMIT_HANDSHAKES] == 9)
        quiet.settimeout(0.05)
        with pytest.raises(TimeoutError):
            quiet.recv(1)
    for made in silent:
        made.close()
    close_server(node)


def test_a_tunnel_waits_for_the_pods_certificate(
    server: ServerNode, authority: Authority, client_credential: Credential
) -> None:
    ip = new_ip()
    identity = spiffe("late")
    assert not server.engine.add_pod(9, "server", identity, hbone=listen(ip, HBONE))
    with connect((ip, HBONE)) as plain:
        asked = server.engine.wait_kind(3)
        assert (asked.identity, asked.pod) == (identity, 9)
        assert not server.engine.put_identity(identity, authority.issue(identity))
        made = Hyper(tls_context(False, client_credential).wrap_socket(plain), True)
        made.wait(h2.events.RemoteSettingsChanged)
        made.close()


def test_a_peer_that_spoke_before_the_certificate_came_is_answered_when_it_is_there(
    server: ServerNode, authority: Authority, client_credential: Credential
) -> None:
    ip = new_ip()
    identity = spiffe("later")
    assert not server.engine.add_pod(10, "server", identity, hbone=listen(ip, HBONE))
    with connect((ip, HBONE)) as plain:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = tls_context(False, client_credential).wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        plain.sendall(outgoing.read())
        server.engine.wait_kind(3)
        plain.settimeout(0.2)  # its hello is there, and nothing answers yet
        with pytest.raises(TimeoutError):
            plain.recv(1)
        assert not server.engine.put_identity(identity, authority.issue(identity))
        plain.settimeout(5)
        assert plain.recv(1) == b"\x16"


def another_kind_of_key() -> str:
    """OpenSSL keeps one certificate per kind of key: this one stands beside the certificate, not against it."""
    made = ed25519.Ed25519PrivateKey.generate()
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_damaged_certificates_are_not_taken(server: ServerNode, authority: Authority) -> None:
    good, other = authority.issue(SERVER_ID), authority.issue(SERVER_ID)
    bad = [
        Credential("", good.key, good.roots),
        Credential(good.chain, "", good.roots),
        Credential(good.chain, good.key, ""),
        Credential(good.chain, other.key, good.roots),
        Credential(good.chain, another_kind_of_key(), good.roots),
        Credential(good.chain + "-----BEGIN CERTIFICATE-----\nAA\n", good.key, good.roots),
    ]
    assert [server.engine.put_identity(SERVER_ID, one) for one in bad] == [-22] * len(bad)
    assert server.engine.put_identity("spiffe://cluster.local/x", good) == -22


def test_peers_that_reset_during_the_handshake_leave_its_bound_free(
    server_credential: Credential, client_credential: Credential
) -> None:
    node = make_server(server_credential, max_handshakes=2)
    for _ in range(40):
        made = connect((node.ip, HBONE))
        made.send(b"\x16\x03\x01\x02\x00")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.close()
    until(lambda: node.engine.stats().accepted == 40)
    peer = node.dial(client_credential)
    assert peer.status(peer.connect(node.authority)) == 200
    close_server(node)
