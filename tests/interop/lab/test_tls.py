"""An independent TLS client at an enrolled pod of a whole mesh."""

import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path

from cryptography import x509

from tests.interop.lab.stage import APP, Lab
from tests.support.hyper import Hyper, tls_context
from tests.support.sockets import HBONE, accept, read_to_end


def test_15008_of_an_enrolled_pod_shows_its_spiffe_id_over_tls_1_3_and_h2(lab: Lab) -> None:
    context = tls_context(False, lab.credential("caller"))
    context.verify_mode = ssl.CERT_REQUIRED
    with lab.dial("caller", lab.ip("server"), HBONE) as plain, context.wrap_socket(plain) as secure:
        assert (secure.version(), secure.selected_alpn_protocol()) == ("TLSv1.3", "h2")
        leaf = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://cluster.local/ns/shop/sa/server"]


def test_openssl_s_client_sees_it_too(lab: Lab, tmp_path: Path) -> None:
    given = lab.credential("caller")
    for name in ("chain", "key", "roots"):
        (tmp_path / name).write_text(getattr(given, name))
    command = ["nsenter", f"--net={lab.netns('caller')}", "openssl", "s_client", "-alpn", "h2", "-noservername"]
    command += ["-connect", f"{lab.ip('server')}:{HBONE}", "-cert", "chain", "-key", "key", "-CAfile", "roots"]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    out = done.stdout.decode(errors="replace")
    assert "Verify return code: 0 (ok)" in out and "ALPN protocol: h2" in out and "TLSv1.3" in out, out


def test_h2_over_ssl_reaches_the_application_of_an_enrolled_pod(lab: Lab, closing: ExitStack) -> None:
    listener = closing.enter_context(lab.listen("server"))
    context = tls_context(False, lab.credential("caller"))
    sock = context.wrap_socket(lab.dial("caller", lab.ip("server"), HBONE))
    peer = closing.enter_context(Hyper(sock, True))
    stream = peer.connect(f"{lab.ip('server')}:{APP}")
    app = closing.enter_context(accept(listener))
    assert peer.status(stream) == 200
    assert app.getpeername()[0] == lab.ip("caller")
    peer.send(stream, b"hello", end=True)
    assert read_to_end(app) == b"hello"
    other = peer.connect(f"{lab.ip('client')}:{APP}")
    assert peer.status(other) == 400
