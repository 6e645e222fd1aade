"""Upgrades: under load, without anything to upgrade, and with a failure half way."""

import os
import socket
import subprocess
import threading
import time
from contextlib import suppress

import pytest

from bpf import kernel
from bpf.loader import install
from bpf.paths import NodePaths
from bpf.plane import NoteKind, Plane
from tests.bpf.attached import attached
from tests.bpf.conftest import Ztunnel, loader
from tests.bpf.dialling import PORT, accepted, dial
from tests.bpf.topology import Place, Topology


class Load:
    """Connects without a pause, each with an answer, and keeps what went wrong."""

    def __init__(self, ztunnel: Ztunnel, place: Place) -> None:
        self.failures: list[str] = []
        self.connects = 0
        self._stop = threading.Event()
        self._ztunnel = ztunnel
        self._place = place
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._dial)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in reversed(self._threads):
            thread.join()

    def _serve(self) -> None:
        self._ztunnel.outbound4.settimeout(0.05)
        while not self._stop.is_set() or self._threads[1].is_alive():
            with suppress(TimeoutError):
                sock, _ = self._ztunnel.outbound4.accept()
                with sock:
                    note = self._ztunnel.plane.note(sock)
                    sock.sendall(b"+" if note and note.kind is NoteKind.ACCEPTED and note.port == PORT else b"-")

    def _dial(self) -> None:
        def run() -> None:
            while not self._stop.is_set():
                try:
                    with socket.create_connection(("10.77.9.1", PORT), timeout=3) as sock:
                        answer = sock.recv(1)
                        if answer != b"+" or sock.getpeername() != ("10.77.9.1", PORT):
                            self.failures.append(f"{answer!r} from {sock.getpeername()}")
                except OSError as error:
                    self.failures.append(repr(error))
                self.connects += 1

        self._place.run(run)


def test_upgrade_under_load_fails_no_connect(net: Topology, plane: Plane, ztunnel: Ztunnel, key: str) -> None:
    fd = kernel.open_pin(plane.paths.programs / "connect4")
    former = kernel.program_info(fd).id
    os.close(fd)
    with Load(ztunnel, net.a) as load:
        for _ in range(3):
            seen = load.connects
            assert loader("upgrade", "--node", key).stdout == "upgraded\n"
            assert load.connects > seen
    assert load.failures == []
    assert load.connects > 200
    assert all(former not in programs for programs in attached().values())
    # Pods' own links run the new program too.
    link = kernel.open_pin(plane.paths.inbound(net.a.cookie))
    program = kernel.open_pin(plane.paths.programs / "inbound")
    assert kernel.link_info(link).program_id == kernel.program_info(program).id
    os.close(link)
    os.close(program)
    with dial(net.out, "10.77.1.1"), accepted(ztunnel.inbound):
        pass


def test_failed_swap_goes_back_to_the_old_programs(
    net: Topology, plane: Plane, ztunnel: Ztunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = attached()
    genuine = kernel.link_update
    calls = 0

    def fails_late(link: int, program: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError(5, "injected")
        genuine(link, program)

    monkeypatch.setattr(kernel, "link_update", fails_late)
    with pytest.raises(OSError, match="injected"):
        install.upgrade(plane.paths)
    assert attached() == before
    assert [path.name for path in plane.paths.node.iterdir()] == [plane.paths.set.name]
    with dial(net.a, "10.77.9.1"), accepted(ztunnel.outbound4) as sock:
        assert plane.note(sock) is not None


def test_upgrade_of_nothing_says_so(spare: NodePaths) -> None:
    done = loader("upgrade", "--node", spare.key, check=False)
    assert done.returncode == 1
    assert "nothing is loaded" in done.stderr


def test_link_of_a_pod_that_is_gone_is_seen_and_replaced(net: Topology, plane: Plane) -> None:
    place = Place(f"{net.a.name}x", "10.77.8.1", "fd77:8::1")
    subprocess.run(["ip", "netns", "add", place.name], check=True, timeout=10)
    try:
        cookie = place.cookie
        with place.path.open() as handle:
            plane.attach_inbound(cookie, handle.fileno())
            plane.attach_inbound(cookie, handle.fileno())
        assert plane.inbound_links()[cookie] is True
    finally:
        subprocess.run(["ip", "netns", "del", place.name], check=True, timeout=10)
    deadline = time.monotonic() + 5
    while plane.inbound_links()[cookie] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert plane.inbound_links()[cookie] is False
    assert loader("upgrade", "--node", plane.paths.key).stdout == "upgraded\n"
    with net.b.path.open() as handle:
        plane.attach_inbound(cookie, handle.fileno())
    assert plane.inbound_links()[cookie] is True
    assert plane.detach_inbound(cookie)
    assert not plane.detach_inbound(cookie)
