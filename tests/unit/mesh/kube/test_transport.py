"""The way to the API server without the official client."""

import http.server
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from mesh.kube.errors import Misconfigured
from mesh.kube.transport import Call, connect_by_account


class Handler(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Handler.seen.append(self.headers.get("authorization", ""))
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """A service account's folder; the certificate is a server's for 127.0.0.1, signed by itself."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    command += ["-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key.pem")]
    subprocess.run([*command, "-out", str(tmp_path / "ca.crt")], check=True, capture_output=True)
    (tmp_path / "token").write_text("first\n")
    return tmp_path


@pytest.fixture
def port(account: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "ca.crt", account / "key.pem")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_token_is_read_for_each_request_and_the_server_is_checked(account: Path, port: int) -> None:
    env = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
    transport = connect_by_account(account, env)
    assert transport.request(Call("GET", "/api")) == {"path": "/api"}
    (account / "token").write_text("second")
    transport.request(Call("GET", "/api"))
    assert Handler.seen[-2:] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("missing", ["host", "token", "ca.crt"])
def test_what_is_missing_is_said(account: Path, missing: str) -> None:
    env = {} if missing == "host" else {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}
    if missing != "host":
        (account / missing).unlink()
    with pytest.raises(Misconfigured, match="service account"):
        connect_by_account(account, env)


def test_the_official_client_is_not_loaded(account: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mesh.kube.transport import connect_by_account;"
        f"connect_by_account(Path({str(account)!r}), {{'KUBERNETES_SERVICE_HOST': 'x'}});"
        "assert 'kubernetes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])
