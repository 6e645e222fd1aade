"""Nobody takes all of a pod's bounds: who holds most of one is refused before it is used up, and others get in."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mesh.reasons import Reason
from tests.engine.conftest import (
    SERVER_ID,
    ServerNode,
    close_server,
    make_client,
    make_server,
    plain_application,
    server_tables,
)
from tests.support.engine import Engine
from tests.support.hyper import Hyper, tls_context
from tests.support.namespace import namespace
from tests.support.pki import Authority, Credential, spiffe
from tests.support.sockets import HBONE, connect, is_refused, is_reset, listen, new_ip, port_of, read_exactly, until

BOUND = 40
SHARE = 30  # of one source: three times what it leaves


@dataclass
class Plain:
    """A pod that takes plain connections: what arrives on 15006 for its application in a namespace of its own."""

    engine: Engine
    ip: str
    app: socket.socket
    near: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        return self.ip, port_of(self.app)

    def dial(self, source: str) -> socket.socket:
        self.near.append(connect(self.address, source))
        return self.near[-1]

    def is_served(self, source: str) -> bool:
        with contextlib.suppress(ConnectionError):
            made = self.dial(source)
            made.sendall(b"x")
            far, _ = self.app.accept()
            self.near.append(far)
            return read_exactly(far, 1) == b"x"
        return False


@pytest.fixture
def plain() -> Iterator[Plain]:
    ip = new_ip()
    with Engine(max_connections_per_pod=BOUND) as engine, plain_application(engine, ip) as app:
        made = Plain(engine, ip, app)
        yield made
        for end in made.near:
            end.close()


def refused(engine: Engine, reason: Reason) -> int:
    return int(engine.stats().refused[reason])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_one_stranger_cannot_take_all_of_a_pods_connections(plain: Plain) -> None:
    greedy, other = new_ip(), new_ip()
    for _ in range(2 * BOUND):
        with contextlib.suppress(ConnectionError):
            plain.dial(greedy)
    until(lambda: refused(plain.engine, Reason.LIMIT_SHARE) == 2 * BOUND - SHARE)
    assert plain.engine.stats().connections_open == SHARE
    closed = plain.engine.wait_closed()
    assert closed.downstream[0] == greedy
    assert "has its share of the pod's connections" in closed.detail
    for _ in range(SHARE):
        plain.app.accept()[0].close()
    until(lambda: plain.engine.stats().connections_open == SHARE)
    assert all(plain.is_served(other) for _ in range(5))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_what_a_source_gives_back_it_may_have_again(plain: Plain) -> None:
    greedy = new_ip()
    for times in range(1, 4):
        for _ in range(BOUND):
            with contextlib.suppress(ConnectionError):
                plain.dial(greedy)
        # What still waits to be accepted would be let in once the others have left.
        until(lambda times=times: refused(plain.engine, Reason.LIMIT_SHARE) == times * (BOUND - SHARE))  # type: ignore[misc]
        assert plain.engine.stats().connections_open == SHARE
        far = [plain.app.accept()[0] for _ in range(SHARE)]
        for end in (*plain.near, *far):
            end.close()
        plain.near.clear()
        until(lambda: plain.engine.stats().connections_open == 0)
    assert plain.is_served(greedy)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
@pytest.mark.parametrize("known", [False, True], ids=["strangers", "workloads"])
def test_strangers_of_one_ipv6_network_are_one_source_and_workloads_are_each_their_own(known: bool) -> None:
    with (
        Engine(max_connections_per_pod=BOUND) as engine,
        namespace() as outside,
        namespace() as inside,
        contextlib.ExitStack() as stack,
    ):
        sources = [f"fd77::{host:x}" for host in range(1, BOUND + 2)]
        add_addresses(outside, "fd66::1", *sources)
        add_addresses(inside, "fd66::1")
        capture = outside(lambda: listen("fd66::1"))
        port = port_of(capture)
        stack.enter_context(inside(lambda: listen("fd66::1", port)))
        tables = server_tables("fd66::1")
        for number, ip in enumerate(sources, 100):
            if known:
                tables.workload(number, f"w{number}", spiffe("w"), ip, hbone=False)
        engine.publish(tables)
        netns = os.dup(inside.fd)  # type: ignore[attr-defined]
        assert not engine.add_pod(1, "server", SERVER_ID, inbound=capture, netns=netns)
        for source in sources:
            stack.enter_context(outside(lambda source=source: begin(("fd66::1", port), source)))  # type: ignore[misc]
        expected = (0, 1) if known else (BOUND + 1 - SHARE, 0)
        until(lambda: (refused(engine, Reason.LIMIT_SHARE), refused(engine, Reason.LIMIT_CONNECTIONS)) == expected)


def begin(address: tuple[str, int], source: str) -> socket.socket:
    """A connection on its way: it may be reset before connect() would return."""
    made = socket.socket(socket.AF_INET6)
    made.bind((source, 0))
    made.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionError):
        made.connect(address)
    return made


def add_addresses(inside: Any, *ips: str) -> None:
    for ip in ips:
        command = [
            "nsenter",
            f"--net=/proc/self/fd/{inside.fd}",
            "ip",
            "addr",
            "add",
            f"{ip}/128",
            "dev",
            "lo",
            "nodad",
        ]
        subprocess.run(command, check=True, pass_fds=(inside.fd,))


@pytest.fixture
def node(server_credential: Credential) -> Iterator[ServerNode]:
    made = make_server(server_credential, max_connections_per_pod=BOUND)
    yield made
    close_server(made)


def test_one_identity_cannot_take_all_of_a_pods_connections_from_many_addresses(
    node: ServerNode, authority: Authority
) -> None:
    greedy, other = authority.issue(spiffe("greedy")), authority.issue(spiffe("other"))
    statuses = []
    for _ in range(BOUND // 4):
        peer = Hyper.dial(node.ip, tls_context(False, greedy), new_ip())
        node.peers.append(peer)
        statuses += [peer.status(peer.connect(node.authority)) for _ in range(8)]
    assert statuses == [200] * SHARE + [503] * (2 * BOUND - SHARE)
    assert refused(node.engine, Reason.LIMIT_SHARE) == 2 * BOUND - SHARE
    peer = node.dial(other)
    assert peer.status(peer.connect(node.authority)) == 200


def test_one_address_cannot_take_all_of_a_pods_tunnels(node: ServerNode, client_credential: Credential) -> None:
    greedy = new_ip()
    context = tls_context(False, client_credential)
    for _ in range(SHARE):
        node.peers.append(Hyper.dial(node.ip, context, greedy))
    assert is_refused(lambda: connect((node.ip, HBONE), greedy))
    closed = node.engine.wait_closed()
    assert (closed.reason, closed.downstream[0]) == (Reason.LIMIT_SHARE, greedy)
    peer = Hyper.dial(node.ip, context, new_ip())
    node.peers.append(peer)
    assert peer.status(peer.connect(node.authority)) == 200
    node.peers.pop(0).close()
    until(lambda: not is_refused_quickly(node, greedy))


def is_refused_quickly(node: ServerNode, source: str) -> bool:
    with connect((node.ip, HBONE), source) as made:
        made.settimeout(0.05)
        try:
            return is_reset(made)
        except TimeoutError:
            return False


def test_silence_from_one_address_costs_nobody_else_a_handshake(
    server_credential: Credential, client_credential: Credential
) -> None:
    node = make_server(server_credential, max_handshakes=8)
    with connect((node.ip, HBONE), new_ip()) as honest:  # the oldest of all
        until(lambda: node.engine.stats().accepted == 1)
        greedy = new_ip()
        silent = [connect((node.ip, HBONE), greedy) for _ in range(40)]
        until(lambda: refused(node.engine, Reason.LIMIT_HANDSHAKES) == 33)
        peer = Hyper(tls_context(False, client_credential).wrap_socket(honest), True)
        assert peer.status(peer.connect(node.authority)) == 200
        peer.close()
    for made in silent:
        made.close()
    close_server(node)


def test_a_pod_that_opens_too_much_hurts_only_itself(client_credential: Credential) -> None:
    app = listen(new_ip())
    client = make_client(client_credential, app.getsockname(), hbone=False, max_connections_per_pod=8)
    ip, capture, inbound = new_ip(), listen(new_ip()), listen(new_ip())
    vip = capture.getsockname()
    tables = server_tables(ip).workload(1, "client", spiffe("client"), client.pod_ip, hbone=False)
    tables.workload(10, "app", SERVER_ID, app.getsockname()[0], hbone=False)
    tables.service(100, client.vip, client.port, (10, port_of(app))).service(101, vip[0], vip[1], (10, port_of(app)))
    client.engine.publish(tables)
    assert not client.engine.add_pod(2, "server", SERVER_ID, outbound=capture, inbound=inbound)
    far = []
    for _ in range(8):
        client.connect()
        far.append(app.accept()[0])
    assert is_refused(client.connect)
    assert refused(client.engine, Reason.LIMIT_CONNECTIONS) == 1
    with connect(vip) as near:
        end, _ = app.accept()
        near.sendall(b"other")
        assert read_exactly(end, 5) == b"other"
        end.close()
    for made in (*client.open, *far, app):
        made.close()
    client.engine.__exit__(None, None, None)


HOLD = """
import socket, sys
held = []
for _ in range(int(sys.argv[4])):
    made = socket.socket()
    made.bind((sys.argv[1], 0))
    try:
        made.connect((sys.argv[2], int(sys.argv[3])))
    except OSError:
        continue
    held.append(made)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(source: str, address: tuple[str, int], count: int) -> Iterator[None]:
    """Connections of another process: their descriptors are not the engine's."""
    command = [sys.executable, "-c", HOLD, source, address[0], str(address[1]), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


def test_one_address_cannot_take_all_of_a_nodes_descriptors_over_many_pods(server_credential: Credential) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Room for what earlier tests hold. Of 640, 600 are for connections: 300 of them, 225 of one peer.
    limit = 640 + 128 * (len(list(Path("/proc/self/fd").iterdir())) // 128)
    share = limit * 45 // 128
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    node = make_server(server_credential, max_connections_per_pod=8192, max_handshakes=8192)
    try:
        greedy, other = new_ip(), new_ip()
        pods = [node.ip, *(new_ip() for _ in range(3))]
        for number, ip in enumerate(pods[1:], 2):
            assert not node.engine.add_pod(number, "server", SERVER_ID, hbone=listen(ip, HBONE))
        with contextlib.ExitStack() as stack:
            for ip in pods:
                stack.enter_context(holding(greedy, (ip, HBONE), share // 4 + 14))
            until(lambda: node.engine.stats().accepted == 4 * (share // 4 + 14))
            assert refused(node.engine, Reason.LIMIT_SHARE) == 4 * (share // 4 + 14) - share
            assert is_refused(lambda: connect((pods[-1], HBONE), greedy))
            assert not is_refused_quickly(node, other)
        assert refused(node.engine, Reason.LIMIT_DESCRIPTORS) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_server(node)
