import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from bpf.ends import Ends
from bpf.layout import PodFlag
from bpf.paths import NodePaths
from bpf.plane import Address, MapFull, Pod
from daemonset import kernel as module
from daemonset.enrolment import CaptureRefused, KernelFault
from daemonset.kernel import NodeKernel
from mesh.addresses import IPAddress

V4, V6, OTHER = ip_address("10.0.0.5"), ip_address("fd00::5"), ip_address("10.0.0.9")
BOTH = PodFlag.CAPTURE | PodFlag.INBOUND


@dataclass
class FakePlane:
    """The plane's maps as dictionaries, and the order in which they were written."""

    paths: NodePaths
    log: list[str] = field(default_factory=list)
    known: dict[int, Pod] = field(default_factory=dict)
    owners: dict[IPAddress, Address] = field(default_factory=dict)
    links: dict[int, bool] = field(default_factory=dict)
    full: bool = False
    open_fallbacks: set[int] = field(default_factory=set)

    def fallbacks(self) -> list[int]:
        return list(self.open_fallbacks)

    def set_fallback(self, netns: int, is_open: bool) -> None:
        if self.full:
            raise OSError("no memory")
        assert not is_open
        self.open_fallbacks.discard(netns)

    ends: Ends = Ends((4,), ())
    guarding: set[int] = field(default_factory=set)

    def attach_guard(self, netns: int, netns_fd: int) -> Ends:
        self.log.append(f"guard {netns} by {netns_fd}")
        if self.ends.indexes:
            self.guarding.add(netns)
        return self.ends

    def detach_guard(self, netns: int) -> bool:
        had = netns in self.guarding
        self.guarding.discard(netns)
        if had:
            self.log.append(f"no guard {netns}")
        return had

    def is_guarded(self, netns: int) -> bool:
        return netns in self.guarding

    def guarded(self, pods: Mapping[int, int]) -> set[int]:
        return self.guarding & set(pods)

    def pod(self, netns: int) -> Pod | None:
        return self.known.get(netns)

    def pods(self) -> dict[int, Pod]:
        return self.known

    def enrol(self, netns: int, ip4: IPAddress | None, ip6: IPAddress | None, flags: PodFlag) -> None:
        if self.full:
            raise MapFull("map pods of node n1 is full")
        self.log.append(f"pod {netns} {flags!r}")
        self.known[netns] = Pod(netns, ip4, ip6, flags)

    def set_flags(self, netns: int, flags: PodFlag) -> None:
        self.log.append(f"flags {netns} {flags!r}")

    def addresses(self) -> dict[IPAddress, Address]:
        return dict(self.owners)

    def put_address(self, address: IPAddress, netns: int, flags: PodFlag) -> None:
        self.log.append(f"address {address}")
        self.owners[address] = Address(netns, flags)

    def remove_address(self, address: IPAddress) -> bool:
        self.log.append(f"remove {address}")
        return self.owners.pop(address, None) is not None

    def attach_inbound(self, netns: int, netns_fd: int) -> None:
        self.log.append(f"link {netns} by {netns_fd}")
        self.links[netns] = True

    def inbound_links(self) -> dict[int, bool]:
        return self.links


@pytest.fixture
def plane(tmp_path: Path) -> FakePlane:
    return FakePlane(NodePaths("n1", tmp_path / "bpf", tmp_path / "run"))


@pytest.fixture
def kernel(plane: FakePlane) -> NodeKernel:
    return NodeKernel(plane)  # type: ignore[arg-type]


def test_what_arrives_is_steered_before_what_leaves_is_captured(plane: FakePlane, kernel: NodeKernel) -> None:
    kernel.capture(7, 3, [V4, V6])
    assert plane.log == [
        f"pod 7 {PodFlag.INBOUND!r}",
        "address 10.0.0.5",
        "address fd00::5",
        "link 7 by 3",
        f"pod 7 {BOTH!r}",
    ]
    assert plane.known[7] == Pod(7, V4, V6, BOTH)


def test_a_captured_pod_is_never_uncaptured_on_the_way(plane: FakePlane, kernel: NodeKernel) -> None:
    kernel.capture(7, 3, [V4])
    plane.log.clear()
    kernel.capture(7, 3, [V4, V6])
    assert [line for line in plane.log if line.startswith("pod")] == [f"pod 7 {BOTH!r}", f"pod 7 {BOTH!r}"]


def test_addresses_that_the_pod_lost_go_and_those_of_others_stay(plane: FakePlane, kernel: NodeKernel) -> None:
    plane.owners[OTHER] = Address(8, PodFlag.INBOUND)
    kernel.capture(7, 3, [V4])
    kernel.capture(7, 3, [V6])
    assert set(plane.owners) == {OTHER, V6}


def test_a_pod_that_was_never_captured_is_uncaptured_by_doing_nothing(plane: FakePlane, kernel: NodeKernel) -> None:
    kernel.uncapture(7)
    assert plane.log == []
    kernel.capture(7, 3, [V4])
    kernel.uncapture(7)
    assert plane.log[-1] == f"flags 7 {PodFlag(0)!r}"


def test_the_guard_is_gone_before_the_capture(plane: FakePlane, kernel: NodeKernel) -> None:
    kernel.capture(7, 3, [V4])
    assert kernel.guard(7, 3) == ""
    assert set(kernel.guarded({7: 3, 8: 4})) == {7}
    kernel.uncapture(7)
    assert plane.log[-2:] == ["no guard 7", f"flags 7 {PodFlag(0)!r}"]


@pytest.mark.parametrize(
    ("ends", "was_guarded", "says"),
    [
        pytest.param(Ends((4,), ()), False, "", id="one link"),
        pytest.param(Ends((4,), ("net1",)), False, "net1", id="a second link without an end"),
        pytest.param(Ends((), ("eth0",)), False, "no end of its links.*eth0", id="no end"),
        pytest.param(Ends((), ()), False, "no links", id="no link"),
        pytest.param(Ends((), ("tunnel",)), True, "", id="hidden by the pod since"),
    ],
)
def test_what_is_not_guarded_is_told(
    plane: FakePlane, kernel: NodeKernel, ends: Ends, was_guarded: bool, says: str
) -> None:
    plane.ends = ends
    plane.guarding = {7} if was_guarded else set()
    found = kernel.guard(7, 3)
    assert re.search(says, found)
    assert bool(found) == bool(says)


def test_an_agent_without_guard_removes_that_of_the_one_before(plane: FakePlane) -> None:
    plane.guarding = {7}
    kernel = NodeKernel(plane, "the setting --guard is off")  # type: ignore[arg-type]
    assert kernel.guard(7, 3) == "the setting --guard is off"
    assert plane.guarding == set()
    assert 7 in kernel.guarded({7: 3}), "nothing is to be done about it"


def test_whatever_is_left_anywhere_counts_as_held(plane: FakePlane, kernel: NodeKernel) -> None:
    kernel.capture(7, 3, [V4])
    plane.known[8] = Pod(8, None, None, PodFlag.INBOUND)
    plane.owners[OTHER] = Address(9, PodFlag.INBOUND)
    plane.links[10] = False
    assert kernel.held() == {7: True, 8: False, 9: False, 10: False}


def test_a_full_map_is_a_fault_with_its_name(plane: FakePlane, kernel: NodeKernel) -> None:
    plane.full = True
    with pytest.raises(KernelFault, match="capture: map pods of node n1 is full"):
        kernel.capture(7, 3, [V4])


def test_a_namespace_in_another_set_is_refused_by_name(
    plane: FakePlane, kernel: NodeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("n1", "lab-n2"):
        pods = plane.paths.bpffs / "culvert" / name / "v1" / "maps" / "pods"
        pods.parent.mkdir(parents=True)
        pods.touch()
    asked: list[str] = []

    def holds(pods: Path, cookie: int) -> bool:
        asked.append(pods.parts[-4])
        return cookie == 7

    monkeypatch.setattr(module, "_holds", holds)
    kernel.admit(8)
    with pytest.raises(CaptureRefused, match="lab-n2"):
        kernel.admit(7)
    assert asked == ["lab-n2", "lab-n2"]


def test_all_fallbacks_are_closed_at_once_and_counted(plane: FakePlane, kernel: NodeKernel) -> None:
    plane.open_fallbacks = {7, 8}
    assert kernel.close_fallbacks() == 2
    assert plane.open_fallbacks == set()
    assert kernel.close_fallbacks() == 0


def test_fallback_that_cannot_be_closed_is_a_fault(plane: FakePlane, kernel: NodeKernel) -> None:
    plane.open_fallbacks, plane.full = {7}, True
    with pytest.raises(KernelFault, match="fallback: no memory"):
        kernel.close_fallbacks()


def test_a_set_without_links_is_missing(plane: FakePlane, kernel: NodeKernel) -> None:
    assert "links is empty" in kernel.missing()
    plane.paths.links.mkdir(parents=True)
    assert "links is empty" in kernel.missing()
    (plane.paths.links / "connect4").touch()
    assert "pods" in kernel.missing()


def test_a_node_without_a_set_is_a_fault_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(KernelFault, match="no programs are loaded for node n1"):
        NodeKernel.open("n1", tmp_path, tmp_path)
