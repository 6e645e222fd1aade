"""The TLS rows of table 9.1: what our 15008 says to certificates and protocols, alerts by name."""

import socket
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from mesh.reasons import Reason
from tests.interop.conftest import OurServer
from tests.support.alerts import note_alerts
from tests.support.hyper import Hyper, tls_context
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import DEADLINE_S, HBONE


def alert_for(server: OurServer, context: ssl.SSLContext) -> str:
    """The alert (RFC 8446 section 6) that ends a connection: at the handshake or, in TLS 1.3, at the first read."""
    received = note_alerts(context)
    with (
        socket.create_connection((server.ip, HBONE), DEADLINE_S) as plain,
        pytest.raises(ssl.SSLError),
        context.wrap_socket(plain) as wrapped,
    ):
        while wrapped.recv(65536):
            pass
        pytest.fail("the connection ended without an alert")
    (only,) = received
    return only


def expired(authority: Authority) -> Credential:
    return authority.issue(spiffe("client"), not_after=authority.now - timedelta(minutes=5))


@pytest.mark.parametrize("row", ["no client certificate", "other trust domain", "expired", "signed by another key"])
def test_row_refused_certificate_gets_its_alert(server: OurServer, authority: Authority, row: str) -> None:
    shown = {
        "no client certificate": (None, "certificate_required"),
        "other trust domain": (authority.issue(spiffe("client", "elsewhere")), "certificate_unknown"),
        "expired": (expired(authority), "certificate_expired"),
        "signed by another key": (Authority().issue(spiffe("client"), trusts=authority), "decrypt_error"),
    }
    given, alert = shown[row]
    assert alert_for(server, tls_context(False, given)) == alert
    reason, event = server.node.closed()
    assert reason in (Reason.TLS_UNTRUSTED, Reason.TLS_FAILED)
    assert not event.opened and event.detail
    assert server.node.stats().handshakes_failed[1] == 1


@pytest.mark.parametrize(
    "uris",
    [
        ("spiffe://cluster.local/ns/default",),
        ("https://cluster.local/ns/default/sa/client",),
        ("spiffe://cluster.local.evil/ns/default/sa/client",),
        ("spiffe://cluster.local/ns/default/sa/client/more",),
        ("spiffe://elsewhere/ns/default/sa/client", "spiffe://cluster.local/ns/default/sa/client"),
    ],
)
def test_a_certificate_that_names_nobody_of_ours_is_certificate_unknown(
    server: OurServer, authority: Authority, uris: tuple[str, ...]
) -> None:
    given = authority.issue(*uris)
    assert alert_for(server, tls_context(False, given)) == "certificate_unknown"


def test_row_tls_1_2(server: OurServer, client_credential: Credential) -> None:
    only = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    assert alert_for(server, tls_context(False, client_credential, versions=only)) == "protocol_version"


def test_row_alpn_http_1_1_only(server: OurServer, client_credential: Credential) -> None:
    context = tls_context(False, client_credential, alpn=("http/1.1",))
    assert alert_for(server, context) == "no_application_protocol"


def test_row_no_alpn_is_accepted_and_speaks_h2(server: OurServer, client_credential: Credential) -> None:
    with Hyper.dial(server.ip, tls_context(False, client_credential, alpn=())) as peer:
        assert peer.socket.selected_alpn_protocol() is None
        assert peer.status(peer.connect(server.authority)) == 200


def test_tls_1_3_h2_and_the_pods_own_identity(server: OurServer) -> None:
    peer = server.peer()
    assert peer.socket.version() == "TLSv1.3"
    assert peer.socket.selected_alpn_protocol() == "h2"
    cipher = peer.socket.cipher()
    assert cipher and cipher[0] in ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256")
    shown = x509.load_der_x509_certificate(peer.socket.getpeercert(binary_form=True) or b"")
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe("server")]


def s_client(server: OurServer, shown: Credential, folder: Path, *arguments: str) -> tuple[str, str]:
    """What openssl s_client writes when it dials our 15008."""
    for name in ("chain", "key", "roots"):
        (folder / name).write_text(getattr(shown, name))
    command = ["openssl", "s_client", "-connect", f"{server.ip}:{HBONE}", "-cert", "chain", "-key", "key", *arguments]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def test_openssl_s_client_sees_the_same(server: OurServer, client_credential: Credential, tmp_path: Path) -> None:
    options = ("-alpn", "h2", "-noservername", "-CAfile", "roots", "-verify_return_error")
    out, error = s_client(server, client_credential, tmp_path, *options)
    assert "Verify return code: 0 (ok)" in out, error
    assert "ALPN protocol: h2" in out
    assert "TLSv1.3" in out
    shown = x509.load_pem_x509_certificate(out[out.index("-----BEGIN CERTIFICATE") :].encode())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe("server")]


@pytest.mark.parametrize(
    "offer", [("-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"), ("-groups", "ffdhe2048")], ids=("suite", "group")
)
def test_an_offer_without_anything_of_ours_gets_handshake_failure(
    server: OurServer, client_credential: Credential, tmp_path: Path, offer: tuple[str, str]
) -> None:
    assert "alert handshake failure" in s_client(server, client_credential, tmp_path, *offer)[1]
