"""Envoy as HBONE client of a whole mesh."""

import contextlib
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.interop.lab.stage import Lab
from tests.support.bulk import assert_bulk
from tests.support.sockets import accept, read_exactly, read_to_end, until


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
