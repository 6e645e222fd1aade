"""A proxy before a real API server that can refuse, be slow, break connections, and tell when something was asked.

client ──HTTP──> doorkeeper ──TLS──> kube-apiserver

What it does not interfere with reaches the server and comes back as it is, watches too.
"""

import http.client
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.cluster.alone import ApiAlone

_PASSED_ON = ("Accept", "Authorization", "Content-Type", "User-Agent")


@dataclass(frozen=True, slots=True)
class Deed:
    """What becomes of a request: an answer in place of the server's, a wait before it.

    `after` is called when the server has answered, before anybody hears of it.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    after: Callable[[], object] = lambda: None


Rule = Callable[[str, str], Deed]  # method and path with query


def pass_all(method: str, path: str) -> Deed:
    """The rule in force at first."""
    del method, path
    return Deed()


class Doorkeeper:
    """One proxy, a context manager; `rule` may be replaced at any time."""

    def __init__(self, server: ApiAlone, folder: Path) -> None:
        config = yaml.safe_load(server.kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.upstream = urlsplit(cluster["server"])
        self.context = ssl.create_default_context(cafile=str(server.place.state / "pki" / "ca.crt"))
        self._front = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._front.daemon_threads = True
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self._front.server_port}"}
        self.kubeconfig = folder / "doorkeeper.kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.rule: Rule = pass_all
        self.seen: list[tuple[float, str, str]] = []  # when (monotonic), method, path with query
        self._watches: set[Any] = set()

    def __enter__(self) -> "Doorkeeper":
        threading.Thread(target=self._front.serve_forever, args=(0.05,), name="doorkeeper", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._front.shutdown()
        self._front.server_close()
        self.cut()

    def cut(self) -> None:
        """Break all watches, without a word."""
        for sock in list(self._watches):
            with suppress(OSError):
                sock.shutdown(2)

    def count(self, since: float) -> int:
        """Requests since a moment."""
        return sum(at >= since for at, _, _ in self.seen)

    def watching(self, sock: Any, *, is_open: bool) -> None:
        """Note a watch, or its end."""
        (self._watches.add if is_open else self._watches.discard)(sock)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        keeper = self

        class Handler(_Handler):
            doorkeeper = keeper

        return Handler


class _Handler(BaseHTTPRequestHandler):
    doorkeeper: Doorkeeper
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.doorkeeper.seen.append((time.monotonic(), self.command, self.path))
        deed = self.doorkeeper.rule(self.command, self.path)
        time.sleep(deed.wait_s)
        if deed.status:
            self._answer(deed.status, deed.headers, b'{"kind":"Status","message":"the doorkeeper says no"}')
            return
        upstream = self.doorkeeper.upstream
        connection = http.client.HTTPSConnection(upstream.netloc, context=self.doorkeeper.context, timeout=600)
        try:
            headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            if "watch=true" in self.path and answer.status == 200:
                self._pass_watch(answer, connection.sock)
            else:
                retry = {"Retry-After": answer.headers["Retry-After"]} if "Retry-After" in answer.headers else {}
                body = answer.read()
                deed.after()
                self._answer(answer.status, retry, body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            connection.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _pass_watch(self, answer: http.client.HTTPResponse, sock: Any) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        both = (sock, self.connection)
        for one in both:
            self.doorkeeper.watching(one, is_open=True)
        try:
            while data := answer.read1(1 << 16):
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        finally:
            for one in both:
                self.doorkeeper.watching(one, is_open=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests say what they saw."""
