import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from daemonset.agent import Agent, Here, KernelNamespaces
from daemonset.lifecycle import State
from daemonset.pods import Pod, RefusalKind, Snapshot
from mesh.aio import Background
from tests.unit.daemonset.fakes import PACE, FakeNamespaces, FakeWorld, open_descriptors, pod, settle

NODE_COOKIE = 1
IN_MESH: Mapping[str, Mapping[str, str]] = {"shop": {"culvert.io/mesh": "enabled"}}
OUTSIDE: Mapping[str, Mapping[str, str]] = {"shop": {}}


def snapshot(*pods: Pod, namespaces: Mapping[str, Mapping[str, str]] = IN_MESH, fault: str = "") -> Snapshot:
    return Snapshot({found.uid: found for found in pods}, namespaces, (fault,) if fault else ())


class Play:
    def __init__(self, background: Background) -> None:
        self.fake = FakeWorld()
        self.namespaces = FakeNamespaces({"/run/netns/web": 10, "/run/netns/cart": 11, "/run/netns/host": NODE_COOKIE})
        self.agent = Agent(Here("n1", NODE_COOKIE), self.fake.world, PACE, self.namespaces, background)

    async def start(self, first: Snapshot, held: Mapping[int, bool] | None = None) -> None:
        self.agent.start(first, held or {})
        await settle()

    async def see(self, following: Snapshot) -> None:
        self.agent.reconcile(following)
        await settle()

    @property
    def states(self) -> dict[str, State]:
        return {worker.pod.name: worker.state for worker in self.agent.workers}

    @property
    def refusals(self) -> dict[str, RefusalKind]:
        return {uid: refusal.kind for uid, refusal in self.agent.refusals.items()}


@asynccontextmanager
async def playing() -> AsyncIterator[Play]:
    async with Background() as background:
        yield Play(background)


def play(body: Callable[[Play], Awaitable[None]]) -> None:
    async def run() -> None:
        async with playing() as made:
            await body(made)

    before = open_descriptors()
    asyncio.run(run())
    assert open_descriptors() == before


def test_pods_of_a_labelled_namespace_are_enrolled_and_others_left_alone() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web"), dataclasses.replace(pod("cart"), namespace="legacy")))
        assert made.states == {"web": State.CAPTURED}
        assert made.fake.log == ["listen web", "capture 10 10.0.0.5", "report +web"]
        assert made.refusals == {}

    play(body)


def test_changing_the_namespaces_label_drains_and_brings_back() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web")))
        await made.see(snapshot(pod("web"), namespaces=OUTSIDE))
        assert made.states == {"web": State.DRAINING}
        await made.fake.clock.advance(PACE.settle_s)
        assert made.states == {}
        assert made.fake.log[-1] == "release 10"
        await made.see(snapshot(pod("web")))
        assert made.states == {"web": State.CAPTURED}

    play(body)


def test_a_pod_that_vanishes_is_released() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web"), pod("cart")))
        await made.see(snapshot(pod("cart")))
        assert made.states == {"cart": State.CAPTURED}
        assert made.fake.log[-1] == "release 10"

    play(body)


@pytest.mark.parametrize("change", ["moved", "vanished"])
def test_a_pod_whose_namespace_is_another_one_is_let_go_and_enrolled_anew(change: str) -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web")))
        made.fake.take_log()
        if change == "moved":
            made.namespaces.cookies["/run/netns/web"] = 12
        else:
            del made.namespaces.cookies["/run/netns/web"]
        await made.see(snapshot(pod("web")))
        log = made.fake.take_log()
        assert log[:3] == ["forget uid-web", "report -uid-web", "release 10"]
        if change == "moved":
            assert log[3:] == ["listen web", "capture 12 10.0.0.5", "report +web"]
        else:
            assert made.refusals == {"uid-web": RefusalKind.NO_NAMESPACE}

    play(body)


def test_a_pod_in_the_nodes_namespace_is_refused() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(dataclasses.replace(pod("web"), netns="/run/netns/host")))
        assert made.refusals == {"uid-web": RefusalKind.HOST_NETWORK}
        assert made.fake.log == []

    play(body)


def test_two_pods_in_one_namespace_are_a_refusal_of_the_second() -> None:
    async def body(made: Play) -> None:
        twin = dataclasses.replace(pod("cart"), netns="/run/netns/web")
        await made.start(snapshot(pod("web"), twin))
        assert made.states == {"web": State.CAPTURED}
        assert made.refusals == {"uid-cart": RefusalKind.SHARED_NAMESPACE}

    play(body)


def test_what_is_refused_for_good_is_told_and_what_only_has_not_started_is_not() -> None:
    async def body(made: Play) -> None:
        twin = dataclasses.replace(pod("cart"), netns="/run/netns/web")
        await made.start(snapshot(pod("web"), twin, pod("new", addresses=())))
        told = [(one.name, refusal.kind) for one, refusal in made.agent.refused()]
        assert told == [("cart", RefusalKind.SHARED_NAMESPACE)]
        assert set(made.refusals) == {"uid-cart", "uid-new"}

    play(body)


def test_a_slip_in_what_is_said_of_an_enrolled_pod_does_not_take_it_out() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web")))
        await made.see(snapshot(pod("web", addresses=())))
        assert made.states == {"web": State.CAPTURED}
        assert made.refusals == {"uid-web": RefusalKind.NO_ADDRESS}
        await made.see(snapshot(pod("web", mesh="yes")))
        assert made.states == {"web": State.CAPTURED}
        assert made.refusals == {"uid-web": RefusalKind.LABEL}

    play(body)


def test_restart_takes_over_what_runs_and_removes_what_does_not() -> None:
    async def body(made: Play) -> None:
        made.fake.has_ztunnel = False
        await made.start(snapshot(pod("web")), {10: True, 99: True})
        assert made.fake.log == ["report +web", "release 99", "listen web"]
        assert [worker.captured for worker in made.agent.workers] == [True]

    play(body)


def test_restart_drains_what_is_captured_and_no_longer_wanted() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web"), pod("cart"), namespaces=OUTSIDE), {10: True})
        assert made.states == {"web": State.DRAINING}
        assert "uncapture 10" in made.fake.log
        await made.fake.clock.advance(PACE.settle_s)
        assert made.states == {}

    play(body)


def test_while_a_pod_cannot_be_read_nothing_of_an_unknown_owner_is_removed() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(fault="shop_web.json: not JSON"), {10: True})
        assert made.fake.log == []
        await made.see(snapshot(pod("web")))
        assert made.fake.log == ["report +web", "listen web", "capture 10 10.0.0.5", "report +web"]

    play(body)


def test_an_orphan_that_cannot_be_removed_is_tried_with_the_next_change() -> None:
    async def body(made: Play) -> None:
        made.fake.kernel_fault = "busy"
        await made.start(snapshot(), {99: False})
        made.fake.kernel_fault = ""
        await made.see(snapshot())
        assert made.fake.log == ["release 99"]

    play(body)


def test_a_lost_ztunnel_reaches_the_pods_worker_and_unknown_pods_are_no_fault() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web")))
        made.fake.take_log()
        made.agent.lost("uid-web", "away")
        made.agent.lost("uid-nobody", "away")
        await settle()
        assert made.fake.log == ["listen web", "capture 10 10.0.0.5", "report +web"]

    play(body)


def test_a_file_in_a_namespaces_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a network namespace"):
        KernelNamespaces().open(str(tmp_path))


def test_the_real_namespace_of_this_process_is_known_again() -> None:
    namespaces = KernelNamespaces()
    opened = namespaces.open("/proc/self/ns/net")
    try:
        assert opened.cookie > 0
        assert namespaces.is_same(opened.fd, "/proc/self/ns/net")
        assert not namespaces.is_same(opened.fd, "/proc/self/ns/pid")
    finally:
        os.close(opened.fd)


def test_guards_are_made_anew_for_captured_pods_whose_links_have_changed() -> None:
    async def body(made: Play) -> None:
        await made.start(snapshot(pod("web"), dataclasses.replace(pod("cart"), namespace="legacy")))
        assert made.fake.guards == 1
        made.agent.check_guards()
        assert made.fake.guards == 1, "it stands"
        made.fake.stands = False
        made.fake.kernel_fault = "guards: no buffer space"
        made.agent.check_guards()
        assert made.fake.guards == 1, "what cannot be seen is looked at again later"
        made.fake.kernel_fault = ""
        made.agent.check_guards()
        assert made.fake.guards == 2
        await made.see(snapshot(pod("web"), namespaces=OUTSIDE))
        made.fake.stands = False
        made.agent.check_guards()
        assert made.fake.guards == 2, "a pod that is not captured has none"

    play(body)
