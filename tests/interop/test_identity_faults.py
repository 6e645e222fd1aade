"""Certificates that are wrong: whom our outbound refuses, what the application and the access log hear."""

import ssl
from datetime import timedelta

import pytest

from mesh.reasons import Reason
from tests.interop.conftest import OurClient, our_client
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import is_refused, is_reset, read_exactly
from ztunnel.events import Path


def show(client: OurClient, shown: Credential) -> str:
    """The peer shows a certificate; the alert that it hears instead of a request."""
    context = tls_context(True, shown)
    context.verify_mode = ssl.CERT_NONE  # the peer is not what is judged
    with pytest.raises((ssl.SSLError, ConnectionResetError)) as caught, Hyper.accept(client.listener, context) as peer:
        peer.accept_request()
        pytest.fail("a request was sent to a peer that nobody may trust")
    return str(caught.value).lower()


def expired(authority: Authority) -> Credential:
    return authority.issue(spiffe("server"), not_after=authority.now - timedelta(minutes=1))


@pytest.mark.parametrize(
    ("fault", "alert"),
    [
        ("another service account", "certificate unknown"),
        ("no SPIFFE id", "certificate unknown"),
        ("another trust domain", "certificate unknown"),
        ("another root", "decrypt error"),
        ("expired", "certificate expired"),
    ],
)
def test_a_peer_that_is_not_the_expected_one_is_untrusted_and_the_application_reset(
    client: OurClient, authority: Authority, fault: str, alert: str
) -> None:
    shown = {
        "another service account": lambda: authority.issue(spiffe("intruder")),
        "no SPIFFE id": lambda: authority.issue("https://server"),
        "another trust domain": lambda: authority.issue(spiffe("server", "elsewhere")),
        "another root": lambda: Authority().issue(spiffe("server")),
        "expired": lambda: expired(authority),
    }[fault]()
    app = client.app()
    assert alert in show(client, shown)
    assert is_reset(app)
    reason, event = client.node.closed()
    assert reason is Reason.TLS_UNTRUSTED
    assert event.detail and not event.opened and not event.bytes_sent
    assert client.node.stats().handshakes_failed[0] >= 1


def test_the_access_log_names_the_identity_expected_and_the_one_shown(client: OurClient, authority: Authority) -> None:
    app = client.app()
    show(client, authority.issue(spiffe("intruder")))
    assert is_reset(app)
    client.node.closed()
    line = client.node.log()
    assert "reason=tls_untrusted" in line
    assert f"src.identity={spiffe('client')}" in line
    assert spiffe("server") in line, line
    assert spiffe("intruder") in line, line


def test_any_uri_of_the_peer_may_be_the_expected_one(client: OurClient, authority: Authority) -> None:
    app = client.app()
    peer = client.accept(authority.issue("https://example.org/x", spiffe("other"), spiffe("server")))
    stream, _ = peer.accept_request()
    peer.answer(stream, 200)
    peer.send(stream, b"x")
    assert read_exactly(app, 1) == b"x"


def test_a_peer_that_refuses_our_certificate_is_a_reset_and_says_so(client: OurClient) -> None:
    app = client.app()
    with pytest.raises(ssl.SSLError), Hyper.accept(client.listener, strict(client)) as peer:
        peer.accept_request()
    assert is_reset(app)
    reason, event = client.node.closed()
    assert reason is Reason.TLS_FAILED
    assert "unknown ca" in event.detail, event.detail


def strict(client: OurClient) -> ssl.SSLContext:
    """A server that trusts another root than the one our certificate comes from."""
    shown = client.shown
    return tls_context(True, Credential(shown.chain, shown.key, Authority("another root").pem))


def test_a_pod_without_a_certificate_is_refused_after_the_wait(
    client_credential: Credential, server_credential: Credential
) -> None:
    with our_client(client_credential, server_credential, source_wait_ms=200) as client:
        client.node.engine.remove_identity(spiffe("client"))
        assert is_refused(client.app)
        assert client.node.closed()[0] is Reason.IDENTITY_UNAVAILABLE


def test_a_renewed_certificate_serves_new_tunnels_and_old_ones_go_on(client: OurClient, authority: Authority) -> None:
    app, old, stream = client.opened()
    before = old.socket.getpeercert(binary_form=True)
    client.node.identity("client", authority.issue(spiffe("client")))
    other = client.app()
    new = client.accept()
    fresh, _ = new.accept_request()
    new.answer(fresh, 200)
    assert new.socket.getpeercert(binary_form=True) != before
    for sock, peer, number in ((app, old, stream), (other, new, fresh)):
        sock.sendall(b"ping")
        assert peer.read(number, 4) == b"ping"


def test_a_peer_that_does_not_finish_the_handshake_is_cut_by_the_deadline(client: OurClient) -> None:
    app = client.app()
    plain, _ = client.listener.accept()
    with plain:
        assert is_reset(app)
    assert client.node.closed()[0] is Reason.HANDSHAKE_TIMEOUT


def test_a_peer_that_does_not_answer_connect_is_cut_by_the_deadline(client: OurClient) -> None:
    app = client.app()
    peer = client.accept()
    stream, _ = peer.accept_request()
    assert is_reset(app)
    assert peer.reset_code(stream) == 8
    assert client.node.closed()[0] is Reason.REQUEST_TIMEOUT


def test_nobody_on_15008_is_a_reset_with_the_reason(client: OurClient) -> None:
    client.listener.close()
    assert is_refused(client.app)
    reason, event = client.node.closed()
    assert (reason, event.path) == (Reason.CONNECT_REFUSED, Path.HBONE)  # plain was not tried
