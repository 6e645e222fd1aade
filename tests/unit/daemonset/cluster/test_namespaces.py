"""Which namespace is a pod's: on a made-up /proc, whose namespaces are real ones."""

import ctypes
import os
import shutil
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from daemonset.cluster.namespaces import Sandboxes, Sought
from mesh.netns import CLONE_NEWNET, inside

UID = "0f8e1c9a-1111-2222-3333-444455556666"
STATIC = "0123456789abcdef0123456789abcdef"
OTHER = "aaaaaaaa-1111-2222-3333-444455556666"


@pytest.fixture
def namespaces() -> Iterator[list[int]]:
    """Descriptors of two fresh namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for namespaces")
    found: list[int] = []

    def make() -> None:
        ctypes.CDLL(None).unshare(CLONE_NEWNET)
        found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    for _ in range(2):
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    yield found
    for fd in found:
        os.close(fd)


class Proc:
    """A /proc with a few processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start(1, "/init.scope", "/proc/self/ns/net", 1)
        (root / "self").symlink_to(root / "1")

    def start(self, pid: int, cgroup: str, netns: str | int, start: int, state: str = "S") -> None:
        folder = self.root / str(pid)
        (folder / "ns").mkdir(parents=True)
        (folder / "cgroup").write_text(f"12:cpu,cpuacct:{cgroup}\n0::{cgroup}\n")
        (folder / "stat").write_text(f"{pid} (a) b) {state} " + "0 " * 18 + f"{start} 0 0\n")
        (folder / "ns/net").symlink_to(netns if isinstance(netns, str) else f"/proc/{os.getpid()}/fd/{netns}")

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / str(pid))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.fixture
def sandboxes(proc: Proc) -> Iterator[Sandboxes]:
    made = Sandboxes(proc.root)
    yield made
    made.close()


def sought(uid: str = UID, runtime_uid: str = "", *addresses: str) -> Sought:
    return Sought(uid, runtime_uid or uid, tuple(ip_address(address) for address in addresses))


def is_at(sandboxes: Sandboxes, uid: str, fd: int) -> bool:
    sandbox = sandboxes.get(uid)
    return sandbox is not None and sandboxes.is_same(fd, sandbox.path)


@pytest.mark.parametrize(
    "cgroup",
    [
        f"/kubepods/besteffort/pod{UID}/abc",
        f"/kube/n1/kubepods/pod{UID}/abc",
        f"/../../pod{UID}/abc",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-abc.scope",
        f"/kubepods/pod{UID}",
    ],
)
def test_a_pod_is_found_by_its_cgroup_whoever_named_it(
    proc: Proc, sandboxes: Sandboxes, namespaces: list[int], cgroup: str
) -> None:
    proc.start(10, cgroup, namespaces[0], 5)
    proc.start(11, f"/kubepods/pod{OTHER}/x", namespaces[1], 4)
    sandboxes.search([sought()])
    assert is_at(sandboxes, UID, namespaces[0])
    assert OTHER not in sandboxes


def test_a_static_pod_is_found_by_the_uid_of_its_file(proc: Proc, sandboxes: Sandboxes, namespaces: list[int]) -> None:
    proc.start(10, f"/kubepods/pod{STATIC}/x", namespaces[0], 5)
    sandboxes.search([sought(UID, STATIC)])
    assert is_at(sandboxes, UID, namespaces[0])


def test_the_oldest_process_counts_and_the_nodes_own_namespace_never(
    proc: Proc, sandboxes: Sandboxes, namespaces: list[int]
) -> None:
    proc.start(10, f"/kubepods/pod{UID}/a", "/proc/self/ns/net", 1)
    proc.start(11, f"/kubepods/pod{UID}/b", namespaces[1], 9)
    proc.start(12, f"/kubepods/pod{UID}/c", namespaces[0], 5)
    sandboxes.search([sought()])
    assert is_at(sandboxes, UID, namespaces[0])


def test_a_namespace_without_the_pods_address_is_not_the_pods(
    proc: Proc, sandboxes: Sandboxes, namespaces: list[int]
) -> None:
    proc.start(10, f"/kubepods/pod{UID}/a", namespaces[0], 5)
    sandboxes.search([sought(UID, "", "10.99.0.7")])
    assert UID not in sandboxes


@pytest.mark.parametrize(("address", "is_there"), [("127.0.0.1", True), ("::1", True), ("127.0.0.2", False)])
def test_a_namespace_with_the_pods_address_is(
    proc: Proc, sandboxes: Sandboxes, namespaces: list[int], address: str, is_there: bool
) -> None:
    def up() -> None:
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")

    inside(namespaces[0], up)
    proc.start(10, f"/kubepods/pod{UID}/a", namespaces[0], 5)
    sandboxes.search([sought(UID, "", address)])
    assert (UID in sandboxes) is is_there


def test_a_container_that_ends_changes_nothing_and_a_new_sandbox_does(
    proc: Proc, sandboxes: Sandboxes, namespaces: list[int]
) -> None:
    proc.start(10, f"/kubepods/pod{UID}/a", namespaces[0], 5)
    proc.start(11, f"/kubepods/pod{UID}/b", namespaces[0], 6)
    sandboxes.search([sought()])
    before = sandboxes.get(UID)
    assert before is not None
    proc.end(10)
    sandboxes.search([sought()])
    after = sandboxes.get(UID)
    assert after is not None and after.path == before.path
    proc.end(11)
    proc.start(12, f"/kubepods/pod{UID}/c", namespaces[1], 20)
    sandboxes.search([sought()])
    renewed = sandboxes.get(UID)
    assert renewed is not None and renewed.path != before.path
    assert is_at(sandboxes, UID, namespaces[1])
    with pytest.raises(OSError, match="gone"):
        sandboxes.open(before.path)


def test_processes_are_not_looked_at_while_the_witnesses_live(
    proc: Proc, sandboxes: Sandboxes, namespaces: list[int]
) -> None:
    proc.start(10, f"/kubepods/pod{UID}/a", namespaces[0], 5)
    sandboxes.search([sought()])
    proc.start(9, f"/kubepods/pod{UID}/z", namespaces[1], 2)
    sandboxes.search([sought()])
    assert is_at(sandboxes, UID, namespaces[0])


def test_a_path_never_comes_to_mean_another_pod(sandboxes: Sandboxes, namespaces: list[int]) -> None:
    first = sandboxes.give(UID, "c1", namespaces[0], ()).path
    sandboxes.keep_only(())
    second = sandboxes.give(OTHER, "c2", namespaces[1], ()).path
    assert first != second
    with pytest.raises(OSError, match="gone"):
        sandboxes.open(first)
    with pytest.raises(OSError, match="gone"):
        sandboxes.is_same(namespaces[1], first)


def test_the_end_of_an_older_sandbox_does_not_matter(sandboxes: Sandboxes, namespaces: list[int]) -> None:
    sandboxes.give(UID, "new", namespaces[0], ())
    sandboxes.remove(UID, "old")
    sandboxes.remove(UID, "")
    assert UID in sandboxes
    sandboxes.remove(UID, "new")
    assert UID not in sandboxes


def test_a_static_pods_sandbox_ends_by_its_container(sandboxes: Sandboxes, namespaces: list[int]) -> None:
    sandboxes.give(UID, "c1", namespaces[0], ())
    sandboxes.remove(STATIC, "c1")
    assert UID not in sandboxes


def test_what_is_no_namespace_is_refused(sandboxes: Sandboxes) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="not a network namespace"):
            sandboxes.give(UID, "c1", fd, ())
    finally:
        os.close(fd)


def test_no_descriptor_stays_open(proc: Proc, namespaces: list[int]) -> None:
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    sandboxes = Sandboxes(proc.root)
    proc.start(10, f"/kubepods/pod{UID}/a", namespaces[0], 5)
    proc.start(11, f"/kubepods/pod{UID}/b", "/proc/self/ns/net", 4)
    sandboxes.search([sought()])
    for fd in (namespaces[1], namespaces[1], namespaces[0]):
        sandboxes.give(UID, "c1", fd, ())
    sandboxes.close()
    assert count() == before
