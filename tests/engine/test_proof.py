"""A tunnel outlives what proved its ends only for as long as it is told to: no new streams, a drain, and the end."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import h2.events
import pytest

from mesh.reasons import Reason
from tests.engine.conftest import (
    CLIENT_ID,
    SERVER_ID,
    Pair,
    ServerNode,
    close_client,
    close_server,
    make_client,
    make_server,
)
from tests.support.border import lib
from tests.support.pki import Authority, Credential
from tests.support.sockets import is_reset, read_exactly, until


def soon() -> datetime:
    """In one to two seconds: certificates know no fractions."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)


def is_alive(near: object, far: object) -> bool:
    near.sendall(b"alive")  # type: ignore[attr-defined]
    return read_exactly(far, 5) == b"alive"  # type: ignore[arg-type]


def cut(pair: Pair, end: str) -> tuple[Reason, bool]:
    closed = getattr(pair, end).engine.wait(lambda event: event.kind == lib.CV_EVENT_CLOSED and event.opened)
    return closed.reason, closed.opened


@pytest.mark.slow
def test_a_peer_whose_certificate_expires_is_told_then_cut(
    make_node: Callable[..., ServerNode], authority: Authority
) -> None:
    node = make_node(expired_drain_ms=700)
    peer = node.dial(authority.issue(CLIENT_ID, not_after=soon()))
    stream = peer.connect(node.authority)
    assert peer.status(stream) == 200
    app = node.accept()
    assert peer.wait(h2.events.ConnectionTerminated).error_code == 0
    app.sendall(b"still here")
    assert peer.read(stream, 10) == b"still here"
    closed = node.engine.wait(lambda event: event.kind == lib.CV_EVENT_CLOSED)
    assert closed.reason == Reason.CERTIFICATE_EXPIRED
    assert is_reset(app)
    until(lambda: node.engine.stats().tunnels_open == 0)


@pytest.mark.slow
def test_an_idle_tunnel_ends_with_its_peers_certificate(
    make_node: Callable[..., ServerNode], authority: Authority
) -> None:
    node = make_node(expired_drain_ms=60_000)
    peer = node.dial(authority.issue(CLIENT_ID, not_after=soon()))
    goaway = peer.until_over()
    assert goaway is not None and goaway.error_code == 0
    until(lambda: node.engine.stats().tunnels_open == 0)
    assert not node.engine.seen


@pytest.mark.slow
def test_clocks_may_differ_by_the_skew(make_node: Callable[..., ServerNode], authority: Authority) -> None:
    node = make_node(certificate_skew_ms=60_000)
    expires = soon()
    peer = node.dial(authority.issue(CLIENT_ID, not_after=expires))
    until(lambda: datetime.now(UTC) > expires + timedelta(seconds=0.3))
    assert peer.status(peer.connect(node.authority)) == 200


@pytest.mark.parametrize("whose", [CLIENT_ID, SERVER_ID])
@pytest.mark.parametrize("begins_in_s", [50, 75])
def test_a_certificate_may_begin_as_late_as_clocks_may_differ(
    authority: Authority, whose: str, begins_in_s: int
) -> None:
    late = authority.issue(whose, not_before=datetime.now(UTC) + timedelta(seconds=begins_in_s))
    shown = {CLIENT_ID: authority.issue(CLIENT_ID), SERVER_ID: authority.issue(SERVER_ID)} | {whose: late}
    server = make_server(shown[SERVER_ID], certificate_skew_ms=60_000)
    client = make_client(shown[CLIENT_ID], (server.ip, server.port), certificate_skew_ms=60_000)
    pair = Pair(client, server)
    if begins_in_s < 60:
        assert is_alive(*pair.open())
    else:
        with contextlib.suppress(ConnectionResetError):  # which may be faster than connect's return
            client.connect()
        closed = (server if whose == CLIENT_ID else client).engine.wait_closed()
        assert closed.reason == Reason.TLS_UNTRUSTED
        assert closed.detail == "certificate is not yet valid"
    close_client(client)
    close_server(server)


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_pooled_tunnel_with_an_expired_certificate_takes_no_new_connection(authority: Authority, whose: str) -> None:
    expires = soon()
    lasting = {"client": authority.issue(CLIENT_ID), "server": authority.issue(SERVER_ID)}
    short = {
        "client": authority.issue(CLIENT_ID, not_after=expires),
        "server": authority.issue(SERVER_ID, not_after=expires),
    }
    shown = lasting | ({"client": short["client"]} if whose == "ours" else {"server": short["server"]})
    server = make_server(shown["server"], certificate_skew_ms=60_000)
    client = make_client(shown["client"], (server.ip, server.port), expired_drain_ms=800)
    pair = Pair(client, server)
    near, far = pair.open()
    # The server renews: it would show the new one to new tunnels. Ours is not renewed, only looked at.
    assert not server.engine.put_identity(SERVER_ID, lasting["server"])
    until(lambda: datetime.now(UTC) > expires + timedelta(seconds=0.1))
    assert is_alive(near, far)
    if whose == "theirs":
        later, beyond = pair.open()
        assert is_alive(later, beyond)
        assert client.engine.stats().tunnels_opened[0] == 2
    assert cut(pair, "client") == (Reason.CERTIFICATE_EXPIRED, True)
    assert is_reset(near)
    assert is_reset(far)
    close_client(client)
    close_server(server)


def test_a_peer_whose_root_is_gone_is_told_then_cut(
    make_node: Callable[..., ServerNode], authority: Authority, client_credential: Credential
) -> None:
    node = make_node(expired_drain_ms=300)
    peer = node.dial(client_credential)
    stream = peer.connect(node.authority)
    assert peer.status(stream) == 200
    app = node.accept()
    fresh = authority.issue(SERVER_ID)
    other = Authority("new root")
    assert not node.engine.put_identity(SERVER_ID, replace(fresh, roots=authority.pem + other.pem))
    second = peer.connect(node.authority)
    assert peer.status(second) == 200, "both roots: the rotation costs nothing"
    assert not node.engine.put_identity(SERVER_ID, replace(fresh, roots=other.pem))
    assert peer.wait(h2.events.ConnectionTerminated).error_code == 0
    closed = node.engine.wait(lambda event: event.kind == lib.CV_EVENT_CLOSED)
    assert closed.reason == Reason.TLS_UNTRUSTED
    assert is_reset(app)


def test_a_root_that_was_renewed_under_its_key_is_the_same_root(
    make_node: Callable[..., ServerNode], authority: Authority, client_credential: Credential
) -> None:
    node = make_node()
    peer = node.dial(client_credential)
    renewed = authority.renewed_root()
    assert not node.engine.put_identity(SERVER_ID, replace(authority.issue(SERVER_ID), roots=renewed))
    assert peer.status(peer.connect(node.authority)) == 200
    peer.ping()
    assert not peer.seen or not any(isinstance(event, h2.events.ConnectionTerminated) for event in peer.seen)
