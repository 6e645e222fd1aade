"""Captured connections of a whole mesh with Envoy as HBONE server."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.lab.stage import APP, Lab, listening
from tests.support import envoy
from tests.support.bulk import assert_bulk
from tests.support.sockets import HBONE, accept, is_refused, is_reset, read_exactly, read_to_end


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
