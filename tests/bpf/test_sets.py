"""Whole program sets: loading, living side by side, upgrade under load, and removal however broken they are."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from bpf import cgroup, kernel
from bpf.kernel import MapShape
from bpf.loader import build, install
from bpf.loader.specs import MAPS, PROGRAMS, ProgramSpec
from bpf.manifest import Manifest
from bpf.paths import BPFFS, NodePaths, escape
from bpf.plane import MapFull, Note, NoteKind, Plane, PlaneUnavailable, PodFlag
from tests.bpf.conftest import BOTH, Ztunnel, enrol, loader
from tests.bpf.dialling import PORT, accepted, dial
from tests.bpf.topology import Place, Topology, prefix


def foreign() -> set[int]:
    """Programs of sets that are not this run's: somebody's lab may come and go on this machine meanwhile."""
    found = set()
    for path in (BPFFS / "culvert").glob("*/*/progs/*"):
        if path.parts[-4].startswith(escape(prefix())):
            continue
        with suppress(OSError):
            fd = kernel.open_pin(path)
            found.add(kernel.program_info(fd).id)
            os.close(fd)
    return found


def attached() -> dict[str, set[int]]:
    """What the kernel says runs at the root, per program of ours by its hook."""
    others = foreign()
    root = cgroup.open_root()
    try:
        found = {spec.name: set(kernel.attached_programs(root, spec.attach_type)) for spec in PROGRAMS if spec.at_root}
    finally:
        os.close(root)
    others |= foreign()
    return {name: programs - others for name, programs in found.items()}


@pytest.fixture
def spare(machine: None, key: str) -> Iterator[NodePaths]:
    """A second node's place on this machine, empty before and after."""
    paths = NodePaths(f"{key}.spare_1")
    yield paths
    install.unload(paths)
    with suppress(FileNotFoundError):
        paths.lock.unlink()
        paths.state.rmdir()
        paths.state.parent.rmdir()


def test_load_pins_everything_and_describes_it(spare: NodePaths) -> None:
    before = attached()
    assert loader("load", "--node", spare.key).stdout == "loaded\n"
    assert {path.name for path in spare.maps.iterdir()} == set(MAPS)
    assert {path.name for path in spare.programs.iterdir()} == {spec.name for spec in PROGRAMS}
    assert {path.name for path in spare.links.iterdir()} == {spec.name for spec in PROGRAMS if spec.at_root}
    manifest = Manifest.read(spare.manifest)
    assert manifest is not None
    assert manifest.shapes == MAPS
    assert set(manifest.tags) == {spec.name for spec in PROGRAMS}
    after = attached()
    assert all(len(after[name] - before[name]) >= 1 for name in after)
    assert [path.name for path in spare.node.iterdir()] == [spare.set.name]


def test_load_of_a_loaded_set_does_nothing(spare: NodePaths) -> None:
    loader("load", "--node", spare.key)
    before = attached()
    assert loader("load", "--node", spare.key).stdout == "unchanged\n"
    assert attached() == before


def test_unload_leaves_nothing(spare: NodePaths) -> None:
    before = attached()
    loader("load", "--node", spare.key)
    assert loader("unload", "--node", spare.key).stdout == "unloaded\n"
    assert attached() == before
    assert not spare.node.exists()
    assert not spare.manifest.exists()
    assert loader("unload", "--node", spare.key).stdout == "nothing was loaded\n"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda paths: paths.manifest.unlink(), id="no manifest"),
        pytest.param(lambda paths: paths.manifest.write_text("{]"), id="manifest is rubbish"),
        pytest.param(lambda paths: install.remove_tree(paths.maps), id="no maps"),
        pytest.param(lambda paths: install.remove_tree(paths.programs), id="no programs"),
        pytest.param(lambda paths: (paths.links / "connect4").unlink(), id="a link is gone"),
        pytest.param(lambda paths: (paths.node / "staging-1" / "links").mkdir(parents=True), id="staging left"),
        pytest.param(lambda paths: (paths.node / "v0").mkdir(), id="another schema beside it"),
    ],
)
def test_unload_works_on_a_half_broken_set(spare: NodePaths, damage: object) -> None:
    before = attached()
    install.load(spare)
    assert callable(damage)
    damage(spare)
    install.unload(spare)
    assert attached() == before
    assert not spare.node.exists()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda paths: (paths.links / "connect4").unlink(), id="a link is gone"),
        pytest.param(lambda paths: install.remove_tree(paths.links), id="all links are gone"),
        pytest.param(lambda paths: install.remove_tree(paths.programs), id="no programs"),
        pytest.param(lambda paths: paths.manifest.unlink(), id="no manifest"),
        pytest.param(lambda paths: paths.manifest.write_text("[]"), id="manifest is rubbish"),
        pytest.param(lambda paths: (paths.maps / "counters").unlink(), id="figures are gone"),
    ],
)
def test_load_repairs_and_keeps_what_is_enrolled(spare: NodePaths, net: Topology, damage: object) -> None:
    install.load(spare)
    with Plane.open(spare.key) as plane:
        plane.put_workload(net.a.address4, 77)
    assert callable(damage)
    damage(spare)
    assert install.load(spare) == "upgraded"
    with Plane.open(spare.key) as plane:
        assert plane.workloads() == {net.a.address4: 77}
    assert {path.name for path in spare.links.iterdir()} == {spec.name for spec in PROGRAMS if spec.at_root}
    assert install.load(spare) == "unchanged"


def test_set_without_its_enrolment_map_is_not_repaired_in_silence(spare: NodePaths) -> None:
    install.load(spare)
    (spare.maps / "pods").unlink()
    done = loader("load", "--node", spare.key, check=False)
    assert done.returncode == 1
    assert "map pods" in done.stderr
    assert [path.name for path in spare.node.iterdir()] == [spare.set.name]


def test_map_of_another_shape_stops_the_upgrade_with_nothing_changed(
    spare: NodePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    install.load(spare)
    before = attached()
    other = MapShape(1, 8, 48, 1024, 1)
    monkeypatch.setitem(MAPS, "pods", other)
    with pytest.raises(install.CannotInstall, match="map pods has another shape"):
        install.upgrade(spare)
    assert attached() == before
    assert [path.name for path in spare.node.iterdir()] == [spare.set.name]


def test_figures_of_another_shape_start_anew(spare: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    install.load(spare)
    fd = kernel.open_pin(spare.maps / "counters")
    former = kernel.map_id(fd)
    os.close(fd)
    monkeypatch.setitem(MAPS, "counters", MapShape(6, 4, 8, 3, 0))
    assert install.upgrade(spare) == "upgraded"
    fd = kernel.open_pin(spare.maps / "counters")
    assert kernel.map_id(fd) != former
    os.close(fd)


def test_set_of_another_schema_is_not_touched(spare: NodePaths) -> None:
    (spare.node / "v0").mkdir(parents=True)
    done = loader("load", "--node", spare.key, check=False)
    assert done.returncode == 1
    assert "another schema" in done.stderr
    assert (spare.node / "v0").exists()


def test_set_of_a_former_boot_is_replaced(spare: NodePaths, net: Topology) -> None:
    """Cookies restart at boot: nothing that such a set says may be believed."""
    install.load(spare)
    with Plane.open(spare.key) as plane:
        plane.enrol(net.a.cookie, net.a.address4, None, BOTH)
    raw = json.loads(spare.manifest.read_text())
    raw["boot"] = "00000000-0000-0000-0000-000000000000"
    spare.manifest.write_text(json.dumps(raw))
    with pytest.raises(PlaneUnavailable, match="before the last boot"):
        Plane.open(spare.key)
    assert install.load(spare) == "loaded"
    with Plane.open(spare.key) as plane:
        assert plane.pods() == {}


def test_link_to_another_cgroup_than_the_root_is_no_link(spare: NodePaths) -> None:
    """What a loader in a container's cgroup namespace would have left: it misses every other pod."""
    install.load(spare)
    before = attached()
    below = cgroup.find_root() / f"{spare.key}-below"
    below.mkdir()
    try:
        path = spare.links / "connect4"
        kernel.link_remove(path)
        program = kernel.open_pin(spare.programs / "connect4")
        target = os.open(below, os.O_RDONLY)
        link = kernel.link_create(program, target, 10)
        kernel.pin(link, path)
        for fd in (link, target, program):
            os.close(fd)
        assert install.load(spare) == "upgraded"
        assert len(attached()["connect4"]) == len(before["connect4"])
        assert install.load(spare) == "unchanged"
    finally:
        below.rmdir()


def test_thousands_of_entries_are_read_in_batches(plane: Plane) -> None:
    numbers = {ip_address(f"10.{index >> 8}.{index & 255}.9"): index + 1 for index in range(5000)}
    for address, number in numbers.items():
        plane.put_workload(address, number)
    assert plane.workloads() == numbers


def test_full_map_is_told(plane: Plane) -> None:
    with pytest.raises(MapFull, match="map pods"):
        for cookie in range(1 << 42, (1 << 42) + 2000):
            plane.enrol(cookie, None, None, PodFlag(0))
    assert len(plane.pods()) == 1024


def test_upgrade_of_nothing_says_so(spare: NodePaths) -> None:
    done = loader("upgrade", "--node", spare.key, check=False)
    assert done.returncode == 1
    assert "nothing is loaded" in done.stderr


def test_bad_key_is_refused(machine: None) -> None:
    done = loader("load", "--node", "../../etc", check=False)
    assert done.returncode == 1
    assert "node key" in done.stderr


def test_plane_of_a_node_without_a_set_says_why(spare: NodePaths) -> None:
    with pytest.raises(PlaneUnavailable, match="no programs are loaded"):
        Plane.open(spare.key)


def test_two_sets_at_one_root_act_on_their_own_pods_only(
    net: Topology, plane: Plane, ztunnel: Ztunnel, spare: NodePaths
) -> None:
    """Pod a is the first node's, pod b the second's."""
    install.load(spare)
    with Plane.open(spare.key) as second:
        enrol(second, net.b)
        other = Ztunnel(second, net.b)
        try:
            with dial(net.a, "10.77.9.1"), accepted(ztunnel.outbound4) as sock:
                assert plane.note(sock) is not None
                assert second.note(sock) is None
            with dial(net.b, "10.77.9.1"), accepted(other.outbound4) as sock:
                assert second.note(sock) is not None
                assert plane.note(sock) is None
            assert (plane.in_flight(), second.in_flight()) == (0, 0)
        finally:
            other.close()
            second.unenrol(net.b.cookie)
    before = attached()
    install.unload(spare)
    assert all(len(attached()[name]) < len(before[name]) for name in before)
    with dial(net.a, "10.77.9.1"), accepted(ztunnel.outbound4) as sock:
        assert plane.note(sock) is not None


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


def test_failed_load_attaches_and_pins_nothing(spare: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    before = attached()
    genuine = kernel.pin
    pinned = 0

    def fails_late(fd: int, path: Path) -> None:
        nonlocal pinned
        pinned += path.parent.name == "links"
        if pinned == 5:
            raise OSError(28, "injected")
        genuine(fd, path)

    monkeypatch.setattr(kernel, "pin", fails_late)
    with pytest.raises(OSError, match="injected"):
        install.load(spare)
    assert attached() == before
    assert not spare.node.exists()
    assert not spare.manifest.exists()


def test_program_that_the_verifier_refuses_is_named(spare: NodePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """connect4 as an sk_lookup program: its context has no such fields."""
    wrong = tuple(ProgramSpec("connect4", 30, 36) if spec.name == "connect4" else spec for spec in PROGRAMS)
    monkeypatch.setattr(build, "PROGRAMS", wrong)
    before = attached()
    with pytest.raises(build.LoadFailed, match="refuses program connect4"):
        install.load(spare)
    assert attached() == before
    assert not spare.node.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_loader_killed_on_the_way_leaves_nothing_attached(spare: NodePaths, number: signal.Signals) -> None:
    """At moments between its start and its end. Either it was done, or nothing runs; the next load works."""
    before = attached()
    killed = 0
    for step in range(6):
        child = subprocess.Popen(
            [sys.executable, "-m", "bpf.loader", "load", "--node", spare.key],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.1 * (step + 1))
        child.send_signal(number)
        killed += child.wait(10) != 0
        if not spare.set.exists():
            assert attached() == before
        elif number == signal.SIGTERM:
            assert Manifest.read(spare.manifest) is not None
        install.unload(spare)
        assert attached() == before
        assert not spare.node.exists()
    assert killed >= 3
    assert install.load(spare) == "loaded"


def test_maps_have_the_shapes_that_are_written_down(plane: Plane) -> None:
    assert {name: kernel.map_shape(plane.map_fd(name)) for name in MAPS} == MAPS


def test_info_prints_every_program_and_attaches_none(machine: None) -> None:
    before = attached()
    rows = json.loads(loader("info", "--json").stdout)
    assert {row["name"] for row in rows} == {spec.name for spec in PROGRAMS}
    for row in rows:
        assert 0 < row["instructions"] < 4096
        assert 0 < row["processed"] < 20_000
        assert row["stack_bytes"] <= 256
    assert attached() == before


def test_compiling_says_nothing(spare: NodePaths) -> None:
    """No warning of the compiler, no log of the verifier."""
    done = loader("load", "--node", spare.key)
    assert done.stderr == ""


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


def test_resident_cost_of_the_plane(loaded: str) -> None:
    """No bcc in a long-lived process."""
    code = (
        "import sys; from bpf.plane import Plane; Plane.open(sys.argv[1]);"
        "assert not any(name == 'bcc' or name.startswith('bcc.') for name in sys.modules);"
        "print([l for l in open('/proc/self/status') if l.startswith('VmRSS')][0].split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, loaded], capture_output=True, text=True, timeout=20, check=True)
    assert int(done.stdout) < 40_000, "kB"


def test_note_on_what_is_no_socket_is_an_error(plane: Plane) -> None:
    with Path(os.devnull).open() as null, pytest.raises(OSError, match="map update"):
        plane.put_note(null.fileno(), Note(NoteKind.OWN))
