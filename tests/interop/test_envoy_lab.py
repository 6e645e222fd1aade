"""Envoy and openssl against a whole mesh: enrolled pods, captured connections, certificates of the mesh's own CA.

node-a: shop/client (enrolled), foreign/caller (not enrolled: Envoy as HBONE client, and independent TLS clients)
node-b: shop/server (enrolled), foreign/envoy (not enrolled; marked as speaking HBONE: Envoy as HBONE server)
"""

import contextlib
import datetime
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509

from controller.ca import keys
from controller.ca.authority import Authority, Lifetimes
from controller.ca.issuer import load
from lab.paths import LabPaths
from mesh.netns import inside
from tests.support import envoy
from tests.support.bulk import assert_bulk
from tests.support.hyper import Hyper, tls_context
from tests.support.machine import alone
from tests.support.pki import Credential
from tests.support.sockets import HBONE, accept, is_refused, is_reset, listen, read_exactly, read_to_end, until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab makes namespaces and attaches programs: needs root"),
]

ROOT = Path(__file__).resolve().parents[2]
APP = 7000

T = TypeVar("T")


def pod(namespace: str, name: str, node: str, **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {
            "nodeName": node,
            "serviceAccountName": name,
            "containers": [{"name": "idle", "command": ["sleep", "infinity"]}],
        },
    }


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


ENROLLED = {"culvert.io/mesh": "enabled", "istio.io/dataplane-mode": "ambient"}
OBJECTS = [
    namespace("shop", **ENROLLED),
    namespace("foreign"),
    pod("shop", "client", "node-a"),
    pod("foreign", "caller", "node-a"),
    pod("shop", "server", "node-b"),
    pod("foreign", "envoy", "node-b", **{"ambient.istio.io/redirection": "enabled"}),
]


class Lab:
    """A lab with the mesh; what happens in its pods happens on this process's sockets."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.pods: dict[str, dict[str, Any]] = {}

    def culvert(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "cli", "lab", *arguments, "--lab", self.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def up(self) -> None:
        self.write("objects", *OBJECTS)
        try:
            self.culvert("up", str(self.folder), "--istio-labels")
        except BaseException:  # it may stay up to be looked at, or not have come up at all
            with contextlib.suppress(AssertionError):
                self.culvert("down")
            raise
        status = json.loads(self.culvert("status", "--json"))
        self.pods = {found["name"]: found for found in status["pods"]}

    def write(self, name: str, *objects: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        return path

    def ip(self, name: str) -> str:
        return str(self.pods[name]["ips"][0])

    def netns(self, name: str) -> Path:
        return Path(self.pods[name]["netns"])

    def within(self, name: str, do: Callable[[], T]) -> T:
        """Do something in a pod's network namespace."""
        return inside(self.netns(name), do)

    def dial(self, source: str, ip: str, port: int) -> socket.socket:
        return self.within(source, lambda: socket.create_connection((ip, port), 10))

    def listen(self, name: str, port: int = APP) -> socket.socket:
        return self.within(name, lambda: listen("0.0.0.0", port))

    def credential(self, account: str) -> Credential:
        """A certificate of the mesh's own authority."""
        now = datetime.datetime.now(datetime.UTC)
        issuer = load(LabPaths(self.name).controller_state / "ca", now)
        key = keys.new_key()
        names = keys.uris([f"spiffe://cluster.local/ns/foreign/sa/{account}"])
        issued = Authority(issuer, Lifetimes(), lambda: now).sign(key.public_key(), names, datetime.timedelta(hours=1))
        *chain, roots = issued.pem_chain
        return Credential("".join(chain), keys.key_pem(key).decode(), roots)

    def log(self, node: str) -> str:
        """The access log of a node's ztunnel."""
        return (LabPaths(self.name).logs / "nodes" / node / "ztunnel.log").read_text()

    def logged(self, node: str, *words: str) -> str:
        """A line of the access log that has all these words; waits for it."""

        def found() -> list[str]:
            return [line for line in self.log(node).splitlines() if all(word in line for word in words)]

        until(lambda: bool(found()), f"a line with {words} in the log of {node}")
        return found()[-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(f"cvg-{os.getpid()}", tmp_path_factory.mktemp("lab"))
    with alone():
        made.up()
        try:
            yield made
        finally:
            made.culvert("down")


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def envoy_client(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], socket.socket]]:
    """Dial what Envoy in the pod `caller` carries to the application of `server`."""
    config = envoy.client_config(
        envoy.Address("127.0.0.1", 9000),
        envoy.Address(lab.ip("server"), HBONE),
        envoy.Address(lab.ip("server"), APP),
        lab.credential("caller"),
    )
    with envoy.running(config, tmp_path_factory.mktemp("client"), "client", lab.netns("caller")):
        listening(lab, "caller", 9000)
        yield lambda: lab.dial("caller", "127.0.0.1", 9000)


@pytest.fixture
def envoy_server(lab: Lab, tmp_path: Path) -> Iterator[envoy.Envoy]:
    """Envoy with 15008 in the pod `envoy`; the application behind it listens on loopback."""
    own = lab.ip("envoy")
    config = envoy.server_config(envoy.Address(own, HBONE), envoy.Address("127.0.0.1", APP), lab.credential("envoy"))
    with envoy.running(config, tmp_path, "server", lab.netns("envoy")) as running:
        listening(lab, "envoy", HBONE)
        yield running


def listening(lab: Lab, name: str, port: int) -> None:
    """Wait until somebody listens on a port of a pod, without connecting to it."""

    def is_there() -> bool:
        rows = lab.within(name, Path("/proc/thread-self/net/tcp").read_text).splitlines()[1:]
        return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)

    until(is_there, f"a listener on port {port} of pod {name}")


# --- an independent TLS client --------------------------------------------------------------------------------------


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


# --- Envoy as client ------------------------------------------------------------------------------------------------


def test_envoy_client_echo_and_half_close(
    lab: Lab, envoy_client: Callable[[], socket.socket], closing: ExitStack
) -> None:
    listener = closing.enter_context(lab.listen("server"))
    client = closing.enter_context(envoy_client())
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    app = closing.enter_context(accept(listener))
    assert app.getpeername()[0] == lab.ip("caller")
    assert read_to_end(app) == b"question"
    app.sendall(b"answer")
    app.close()
    assert read_to_end(client) == b"answer"
    line = lab.logged("node-b", "direction=inbound", "bytes_sent=8", "bytes_recv=6")
    assert "src.identity=spiffe://cluster.local/ns/foreign/sa/caller" in line
    assert "dst.identity=spiffe://cluster.local/ns/shop/sa/server" in line


def test_envoy_client_nothing_listens(lab: Lab, envoy_client: Callable[[], socket.socket], closing: ExitStack) -> None:
    client = closing.enter_context(envoy_client())
    client.sendall(b"x")
    with pytest.raises((EOFError, ConnectionResetError)):
        read_exactly(client, 1)
    assert "http status 503" in lab.logged("node-b", "reason=connect_refused", lab.ip("caller"))


def test_envoy_client_128_mib_with_checksum(
    lab: Lab, envoy_client: Callable[[], socket.socket], closing: ExitStack
) -> None:
    listener = closing.enter_context(lab.listen("server"))
    client = closing.enter_context(envoy_client())
    client.sendall(b"!")
    app = closing.enter_context(accept(listener))
    assert read_exactly(app, 1) == b"!"
    assert_bulk(client, app)


def test_envoy_client_is_refused_by_policy(
    lab: Lab, envoy_client: Callable[[], socket.socket], closing: ExitStack
) -> None:
    closing.enter_context(lab.listen("server"))
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "only-client", "namespace": "shop"},
        "spec": {
            "action": "ALLOW",
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}],
        },
    }
    lab.culvert("apply", "-f", str(lab.write("policy", policy)))
    try:

        def is_refused() -> bool:
            with envoy_client() as client, contextlib.suppress(OSError):
                client.settimeout(0.2)
                client.sendall(b"x")
                client.recv(1)
            return "reason=policy_denied" in lab.log("node-b")

        until(is_refused, "the policy holds")
        line = lab.logged("node-b", "reason=policy_denied", "foreign/sa/caller")
        assert "policy=shop/only-client" in line and "http status 401" in line
    finally:
        lab.culvert("delete", "authorizationpolicy", "shop/only-client")


# --- Envoy as server ------------------------------------------------------------------------------------------------


def test_captured_connection_reaches_envoy_as_hbone(lab: Lab, envoy_server: envoy.Envoy, closing: ExitStack) -> None:
    listener = closing.enter_context(lab.listen("envoy"))
    client = closing.enter_context(lab.dial("client", lab.ip("envoy"), APP))
    assert client.getpeername() == (lab.ip("envoy"), APP)
    assert client.getsockname()[0] == lab.ip("client")
    app = closing.enter_context(accept(listener))
    assert app.getpeername()[0] == "127.0.0.1"  # by Envoy, not by us in clear
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(app) == b"question"
    app.sendall(b"the answer")
    app.close()
    assert read_to_end(client) == b"the answer"
    line = lab.logged("node-a", "direction=outbound", "bytes_sent=8", "bytes_recv=10")
    assert "dst.identity=spiffe://cluster.local/ns/foreign/sa/envoy" in line
    assert f"dst.addr={lab.ip('envoy')}:15008" in line


def test_captured_128_mib_with_checksum_through_envoy(lab: Lab, envoy_server: envoy.Envoy, closing: ExitStack) -> None:
    listener = closing.enter_context(lab.listen("envoy"))
    client = closing.enter_context(lab.dial("client", lab.ip("envoy"), APP))
    client.sendall(b"!")
    app = closing.enter_context(accept(listener))
    assert read_exactly(app, 1) == b"!"
    assert_bulk(client, app)


def test_nothing_behind_envoy_is_a_reset(lab: Lab, envoy_server: envoy.Envoy, closing: ExitStack) -> None:
    assert is_refused(lambda: closing.enter_context(lab.dial("client", lab.ip("envoy"), APP + 1)))
    lab.logged("node-a", "reason=peer_unavailable", "http status 503")


def test_envoy_killed_mid_transfer_is_a_reset(lab: Lab, envoy_server: envoy.Envoy, closing: ExitStack) -> None:
    listener = closing.enter_context(lab.listen("envoy"))
    client = closing.enter_context(lab.dial("client", lab.ip("envoy"), APP))
    app = closing.enter_context(accept(listener))
    app.sendall(b"part")
    assert read_exactly(client, 4) == b"part"
    envoy_server.process.kill()
    assert is_reset(client)
    lab.logged("node-a", "reason=tunnel_lost")


def test_another_identity_than_the_pods_own_is_refused(lab: Lab, tmp_path: Path, closing: ExitStack) -> None:
    own = lab.ip("envoy")
    config = envoy.server_config(envoy.Address(own, HBONE), envoy.Address("127.0.0.1", APP), lab.credential("intruder"))
    listener = closing.enter_context(lab.listen("envoy"))
    with envoy.running(config, tmp_path, "intruder", lab.netns("envoy")):
        listening(lab, "envoy", HBONE)
        assert is_refused(lambda: closing.enter_context(lab.dial("client", own, APP)))
        lab.logged("node-a", "reason=tls_untrusted")
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


# --- garbage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "garbage", "reason"),
    [
        (15006, b"GET / HTTP/1.1\r\n\r\n", "self_call"),
        (15008, b"GET / HTTP/1.1\r\n\r\n", "tls_failed"),
        (15008, os.urandom(4096), "tls_failed"),
    ],
)
def test_garbage_from_the_network_is_closed_and_logged(lab: Lab, port: int, garbage: bytes, reason: str) -> None:
    before = lab.log("node-b").count(f"reason={reason}")
    with contextlib.suppress(OSError), lab.dial("caller", lab.ip("server"), port) as sock:
        sock.sendall(garbage)
        while sock.recv(65536):
            pass
    until(lambda: lab.log("node-b").count(f"reason={reason}") > before, f"a line that says {reason}")
    assert lab.ip("caller") in lab.logged("node-b", f"reason={reason}")


def test_a_connection_to_15001_that_nobody_captured_is_refused_and_logged(lab: Lab) -> None:
    with pytest.raises(OSError):
        say_hello(lab, 15001)
    lab.logged("node-b", "reason=no_note")


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_the_pod_itself_gets_nothing_from_the_meshs_ports_and_cannot_take_them(lab: Lab, port: int) -> None:
    with pytest.raises(OSError):
        say_hello(lab, port)
    with pytest.raises(OSError):
        lab.listen("server", port)


def say_hello(lab: Lab, port: int) -> None:
    """The pod dials a port of its own loopback; raises unless somebody answers with more than a TLS alert."""
    with lab.dial("server", "127.0.0.1", port) as sock:
        sock.sendall(b"hello, is anybody there?")
        answer = sock.recv(100)
        if answer[:1] in (b"", b"\x15"):
            raise ConnectionResetError("closed without an answer")
