"""What the machine has only so much of: memory per idle connection, descriptors, and a namespace of one's own."""

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.reasons import Reason
from tests.engine.conftest import (
    CLIENT_ID,
    SERVER_ID,
    Pair,
    client_tables,
    close_client,
    deny_all,
    make_client,
    plain_application,
    server_tables,
)
from tests.support.engine import Engine
from tests.support.namespace import namespace
from tests.support.pki import Credential
from tests.support.sockets import (
    DEADLINE_S,
    HBONE,
    connect,
    is_refused,
    listen,
    new_ip,
    port_of,
    read_exactly,
    read_to_end,
    until,
)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif("CULVERT_BORDER" in os.environ, reason="a sanitizer's memory is not the engine's")
def test_idle_connections_cost_little_and_all_still_work(make_pair: Callable[..., Pair]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # each connection has four descriptors in this process: one in either engine, and both applications'; the engines
    # leave a sixteenth of the limit alone
    wanted = min(5000, (hard - hard // 16 - 500) // 4)
    pair = make_pair()
    pair.open()
    before = resident_bytes()
    ends = [pair.open() for _ in range(wanted)]
    until(lambda: pair.server.engine.stats().connections_open == wanted + 1)
    per_connection = (resident_bytes() - before) / wanted
    assert per_connection < 6 * 1024, "both engines, and python's two socket objects"
    for near, far in ends[:: wanted // 20]:
        near.sendall(b"awake")
        assert read_exactly(far, 5) == b"awake"


def test_running_out_of_descriptors_pauses_and_recovers() -> None:
    app = listen(new_ip())
    node = make_client(None, app.getsockname(), hbone=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    near = [socket.socket() for _ in range(4)]
    filler: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(made.fileno() for made in near) + 8, hard))
        with contextlib.suppress(OSError):
            while True:
                filler.append(os.dup(0))
        for made in near:
            made.settimeout(DEADLINE_S)
            made.connect(node.address)
        until(lambda: node.engine.stats().refused[Reason.LIMIT_DESCRIPTORS] > 0)
        spins = node.engine.stats().refused[Reason.LIMIT_DESCRIPTORS]
        threading.Event().wait(0.2)
        assert node.engine.stats().refused[Reason.LIMIT_DESCRIPTORS] - spins < 40, "it pauses, it does not spin"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filler:
            os.close(fd)
    far = [app.accept()[0] for _ in near]
    for made in near:
        made.sendall(b"late")
    assert all(read_exactly(made, 4) == b"late" for made in far)
    for made in (*near, *far, app):
        made.close()
    close_client(node)


def test_strangers_leave_descriptors_for_the_process_itself() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    app = listen(new_ip())
    resource.setrlimit(resource.RLIMIT_NOFILE, (640, hard))
    spare: list[int] = []
    near: list[socket.socket] = []
    try:
        node = make_client(None, app.getsockname(), hbone=False)
        near += [socket.socket() for _ in range(250)]  # and each has two descriptors of the engine
        for made in near:
            made.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                made.connect(node.address)
        until(lambda: node.engine.stats().refused[Reason.LIMIT_DESCRIPTORS] > 0)
        for _ in range(30):
            spare.append(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)
        for made in near:
            made.close()
    app.close()
    close_client(node)


def test_many_that_never_read_share_a_bounded_memory_and_lose_nothing() -> None:
    """Each may have 256 KiB read ahead; a worker of 1 MiB gives them the least, and all of it when they read again."""
    app = listen(new_ip())
    node = make_client(None, app.getsockname(), hbone=False, worker_buffer_bytes=1 << 20)
    near, far, sent = [], [], []
    for _ in range(48):
        near.append(node.connect())
        far.append(app.accept()[0])
    for made in near:
        made.setblocking(False)
    sent = [0] * len(near)
    idle = 0
    while idle < 20:  # until nothing goes in any more
        before = sum(sent)
        for index, made in enumerate(near):
            with contextlib.suppress(BlockingIOError):
                sent[index] += made.send(b"x" * 65536)
        idle = idle + 1 if sum(sent) == before else 0
        if idle:
            threading.Event().wait(0.01)
    held = node.engine.stats().bytes_buffered
    assert 1 << 20 <= held <= (1 << 20) + len(near) * 16384, "without the bound it would be 12 MiB"
    for made, peer, count in zip(near, far, sent, strict=True):
        made.shutdown(socket.SHUT_WR)
        peer.settimeout(DEADLINE_S)
        assert len(read_to_end(peer)) == count
        peer.close()
    until(lambda: node.engine.stats().bytes_buffered == 0)
    app.close()
    close_client(node)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_plain_inbound_reaches_the_application_inside_the_pods_namespace() -> None:
    ip = new_ip()
    with Engine() as engine, plain_application(engine, ip) as app:
        port = port_of(app)
        with connect((ip, port)) as near:
            far, _ = app.accept()
            near.sendall(b"plain")
            near.shutdown(socket.SHUT_WR)
            assert read_to_end(far) == b"plain"
            far.close()
            assert read_to_end(near) == b""
        closed = engine.wait_closed()
        assert (closed.reason, closed.path, closed.direction) == (Reason.OK, 1, 2)
        assert closed.upstream == (ip, port)
        engine.publish(deny_all(server_tables(ip), ip))
        assert is_refused(lambda: connect((ip, port)))
        assert engine.wait_closed().reason == Reason.POLICY_DENIED


def test_a_mesh_port_is_never_dialled_from_15006() -> None:
    ip = new_ip()
    with Engine() as engine:
        engine.publish(server_tables(ip))
        assert not engine.add_pod(1, "server", SERVER_ID, inbound=listen(ip, 15006))
        assert is_refused(lambda: connect((ip, 15006)))
        assert engine.wait_closed().reason == Reason.SELF_CALL


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_a_mesh_port_is_never_dialled_from_15001(is_known: bool, port: int) -> None:
    """It would reach ourselves, again and again. Refused at once: also before anybody has said whose pod it is."""
    ip = new_ip()
    with Engine(source_wait_ms=60000) as engine:
        if is_known:
            engine.publish(server_tables(ip))
        assert not engine.add_pod(1, "server", SERVER_ID, outbound=listen(ip, port))
        assert is_refused(lambda: connect((ip, port)))
        assert engine.wait_closed().reason == Reason.SELF_CALL


def test_ipv6_end_to_end(server_credential: Credential, client_credential: Credential) -> None:
    with Engine() as far, Engine() as near:
        app = listen("::1")
        assert not far.put_identity(SERVER_ID, server_credential)
        assert not near.put_identity(CLIENT_ID, client_credential)
        far.publish(server_tables("::1"))
        assert not far.add_pod(1, "server", SERVER_ID, hbone=listen("::1", HBONE))
        capture = listen(new_ip())
        vip, port = capture.getsockname()
        near.publish(client_tables("fd00::7", vip, port, ("::1", port_of(app))))
        assert not near.add_pod(1, "client", CLIENT_ID, outbound=capture)
        with connect((vip, port)) as made:
            accepted, _ = app.accept()
            made.sendall(b"six")
            assert read_exactly(accepted, 3) == b"six"
            accepted.close()
        closed = far.wait_closed()
        assert closed.hbone[0] == "::1"
        assert closed.upstream == ("::1", port_of(app))
        app.close()


def test_a_worker_stays_in_its_own_namespace() -> None:
    """Sockets made for a pod leave the worker where it was."""
    if os.geteuid() != 0:
        pytest.skip("makes a network namespace")
    ip = new_ip()
    with Engine() as engine, namespace() as inside:
        capture = listen(ip)
        app = inside(lambda: listen(ip, port_of(capture)))
        engine.publish(server_tables(ip))
        netns = os.dup(inside.fd)  # type: ignore[attr-defined]
        port = port_of(capture)
        assert not engine.add_pod(1, "server", SERVER_ID, inbound=capture, netns=netns)
        with connect((ip, port)) as near:
            far, _ = app.accept()
            home = Path("/proc/self/ns/net").readlink()
            tasks = {Path(f"{task}/ns/net").readlink() for task in Path("/proc/self/task").iterdir()}
            assert home in tasks
            assert len(tasks) == 2, "home, and the thread of this test's namespace"
            far.close()
            near.close()
        app.close()


def worker_cpu_s() -> float:
    """CPU time of every thread of this process but the main one."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        if task.name != str(os.getpid()):
            fields = (task / "stat").read_text().rsplit(") ", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_a_spinning_worker_sleeps_when_nothing_comes(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"spin_us": 200}, {"spin_us": 200})
    near, far = pair.open()
    for _ in range(200):
        near.sendall(b"ping")
        far.sendall(read_exactly(far, 4))
        assert read_exactly(near, 4) == b"ping"
    before = worker_cpu_s()
    threading.Event().wait(0.5)
    assert worker_cpu_s() - before < 0.05


def exchange(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"ping")
    far.sendall(read_exactly(far, 4))
    assert read_exactly(near, 4) == b"ping"


def test_a_worker_polls_while_messages_follow_each_other(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"spin_us": 1000}, {"spin_us": 1000})
    near, far = pair.open()
    deadline = time.monotonic() + DEADLINE_S
    while not (pair.client.engine.stats().spun_us and pair.server.engine.stats().spun_us):
        assert time.monotonic() < deadline
        exchange(near, far)


def test_sparse_messages_are_not_polled_for(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({"spin_us": 100}, {"spin_us": 100})
    near, far = pair.open()
    exchange(near, far)
    before = [node.engine.stats().spun_us for node in (pair.client, pair.server)]
    for _ in range(50):
        threading.Event().wait(0.01)
        near.sendall(b"ping")
        threading.Event().wait(0.01)
        far.sendall(read_exactly(far, 4))
        read_exactly(near, 4)
    after = [node.engine.stats().spun_us for node in (pair.client, pair.server)]
    assert all(b - a < 2000 for a, b in zip(before, after, strict=True))  # of a second


def test_without_spin_us_nothing_is_polled_for(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair({}, {})
    near, far = pair.open()
    for _ in range(200):
        exchange(near, far)
    assert not pair.client.engine.stats().spun_us
