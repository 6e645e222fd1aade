"""What a stranger on the link between the nodes can see, and what both ends know of each other."""

import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import mesh_stage
from tests.node.mesh_stage import Mesh
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.slow]

MARKER = "a sentence that must not be read on the way"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_stage.mesh("wire", tmp_path_factory.mktemp("wire")) as running:
        yield running


def capture(mesh: Mesh, path: Path) -> "subprocess.Popen[str]":
    """tcpdump on node-b's end of the link between the nodes."""
    process = mesh.start(
        "node/node-b", "tcpdump", "-i", "eth0", "--immediate-mode", "-U", "-s0", "-w", str(path), "tcp"
    )
    eventually(path.exists)
    time.sleep(0.5)
    return process


def test_the_link_carries_tls_and_not_one_byte_of_the_application(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "link.pcap"
    tcpdump = capture(mesh, path)
    try:
        code = f"import socket; s=socket.create_connection(('web',7001)); s.recv(999); s.sendall({MARKER!r}.encode())"
        code += "; print(s.recv(999).decode())"
        assert mesh.run("shop/client", "python3", "-c", code).stdout.strip() == MARKER
        plain = mesh.ips("legacy/server")[0]
        assert mesh.run("legacy/outside", "python3", "-c", code.replace("'web'", repr(plain))).stdout
        time.sleep(0.5)
    finally:
        tcpdump.terminate()
        tcpdump.communicate(timeout=10)
    meshed = _packets(path, f"ip.addr=={mesh.ips('shop/web')[0]} or ipv6.addr=={mesh.ips('shop/web')[1]}")
    assert meshed, "traffic between the pods crossed the link"
    assert {packet["port"] for packet in meshed} == {"15008"}
    assert not [packet for packet in meshed if MARKER.encode().hex() in packet["payload"]]
    others = _packets(path, f"ip.addr=={plain}")
    assert [packet for packet in others if MARKER.encode().hex() in packet["payload"]], "the capture sees plain text"
    versions = _tshark(
        path, "-Y", "tls.handshake.type==2", "-T", "fields", "-e", "tls.handshake.extensions.supported_version"
    )
    assert "0x0304" in versions
    assert "h2" in _tshark(
        path, "-Y", "tls.handshake.type==1", "-T", "fields", "-e", "tls.handshake.extensions_alpn_str"
    )


def _tshark(path: Path, *words: str) -> str:
    done = subprocess.run(["tshark", "-r", str(path), *words], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def _packets(path: Path, filter_: str) -> list[dict[str, str]]:
    """TCP segments with payload: the server's port and the payload in hex."""
    fields = ("-T", "fields", "-e", "tcp.srcport", "-e", "tcp.dstport", "-e", "tcp.payload")
    found = []
    for line in _tshark(
        path, "-o", "tcp.desegment_tcp_streams:false", "-Y", f"({filter_}) and tcp.len>0", *fields
    ).splitlines():
        source, destination, payload = (*line.split("\t"), "", "")[:3]
        port = "15008" if "15008" in (source, destination) else destination
        found.append({"port": port, "payload": payload.replace(":", "")})
    return found


def test_each_end_records_the_identity_that_the_other_proved(mesh: Mesh) -> None:
    assert mesh.client("shop/client", "names", "web", 7001)
    client, web = (f"spiffe://cluster.local/ns/shop/sa/{name}" for name in ("client", "web"))
    assert mesh.logged("node-a", src__workload="client")["dst.identity"] == web
    assert mesh.logged("node-b", dst__workload="web")["src.identity"] == client


def test_an_independent_tls_client_sees_the_pods_identity(mesh: Mesh) -> None:
    """Without a certificate of the mesh it gets so far and no further."""
    words = ("openssl", "s_client", "-connect", f"{mesh.ips('shop/web')[0]}:15008", "-alpn", "h2", "-showcerts")
    shown = mesh.run("legacy/outside", *words, stdin=subprocess.DEVNULL).stdout
    assert "TLSv1.3" in shown
    assert "ALPN protocol: h2" in shown
    pem = shown[shown.index("-----BEGIN") : shown.index("-----END") + len("-----END CERTIFICATE-----")]
    der = ssl.PEM_cert_to_DER_cert(pem + "\n")
    assert b"spiffe://cluster.local/ns/shop/sa/web" in der


def test_no_secret_is_in_a_dump_or_log(mesh: Mesh) -> None:
    dump = mesh.run("node/node-b", "curl", "-s", "http://127.0.0.1:15000/config_dump").stdout
    found = json.loads(dump)
    states = {entry["identity"]: entry["state"] for entry in found["certificates"]}
    assert states["spiffe://cluster.local/ns/shop/sa/web"] == "Available"
    log = "".join(mesh.command("lab", "logs", f"node/{node}/ztunnel").stdout for node in ("node-a", "node-b"))
    for text in (dump, log, mesh.command("lab", "logs", "controller").stdout):
        assert "PRIVATE KEY" not in text
